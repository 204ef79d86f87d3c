import pytest
import torch
from torch import nn

from rea2seg import Query, Rea2Seg, devices
from rea2seg.devices import Placement
from rea2seg.errors import ConfigError
from rea2seg.synth import SgdrSynth


class Traveller(nn.Module):
    """A layer that knows where its weights lie. The CPU by number stands for a GPU: torch copies what goes there."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("counts", torch.arange(2.0))

    def places(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (*self.parameters(), *self.buffers())]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "chosen_device", lambda _: "cpu:0")


@pytest.mark.usefixtures("gpu")
def test_offloaded_models_visit_the_device_for_the_length_of_a_block():
    one, other = Traveller(), Traveller()
    weights, home = list(one.parameters()), [one.places(), other.places()]
    answer = one.layer(torch.ones(3))
    for _ in range(2):
        with Placement("cuda", offload=True).present(one, other):
            assert not set(one.places()) & set(home[0])
            assert not set(other.places()) & set(home[1])
            assert one.layer(torch.ones(3)).equal(answer)
        # Nothing was carried back: the weights are where they always were.
        assert [one.places(), other.places()] == home
    assert all(before is after for before, after in zip(weights, one.parameters(), strict=True))


@pytest.mark.usefixtures("gpu")
def test_they_come_home_from_a_block_that_fails():
    model = Traveller()
    home = model.places()
    with pytest.raises(RuntimeError, match="out of memory"), Placement("cuda", offload=True).present(model):
        raise RuntimeError("out of memory")
    assert model.places() == home


@pytest.mark.usefixtures("gpu")
def test_models_that_are_not_offloaded_stay_where_they_are():
    model = Traveller()
    home = model.places()
    with Placement("cuda").present(model):
        assert model.places() == home


@pytest.mark.usefixtures("gpu")
def test_quantised_models_are_moved_by_their_own_method():
    moves = []

    class Quantised(Traveller):
        def to(self, place: str) -> nn.Module:
            moves.append(place)
            return self

    with Placement("cuda", "nf4", offload=True).present(Quantised()):
        assert moves == ["cpu:0"]
    assert moves == ["cpu:0", "cpu"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"precision": "fp8"}, "precision must be one of float32, bfloat16, float16, int8, nf4, not 'fp8'"),
        ({"device_map": "all"}, "device_map must be one of auto, balanced, sequential, not 'all'"),
        ({"device_map": "auto", "device": "cuda:1"}, "device_map auto takes all GPUs, and device names cuda:1"),
        ({"device_map": "auto", "offload": True}, "offload moves whole models, which device_map auto does not allow"),
        ({"precision": "int8", "offload": True}, "offload moves whole models, which int8 does not allow"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_contradict_each_other_are_refused(settings, told):
    with pytest.raises(ConfigError) as caught:
        Placement(**settings)
    assert str(caught.value).startswith(told)


def test_a_pipeline_of_offloaded_models_answers_as_one_of_resident_models(monkeypatch):
    sample = SgdrSynth("val").sample(0)
    query = Query(sample.image, sample.query, sample.id)
    resident = Rea2Seg.from_config("mini", device="cpu")
    wanted = resident.answer(resident.scenes(query))
    offloaded = Rea2Seg.from_config("mini", device="cpu", offload=True)
    homes = [model.device for model in (offloaded.generator.parts.mllm, offloaded.selector.evaluator.model)]
    monkeypatch.setattr(devices, "chosen_device", lambda _: "cpu:0")
    found = offloaded.answer(offloaded.scenes(query))
    assert [score.iou for score in found.scores] == [score.iou for score in wanted.scores]
    assert all(mine.mask.equal(theirs.mask) for mine, theirs in zip(found.candidates, wanted.candidates, strict=True))
    assert homes == [torch.device("cpu")] * 2


def test_what_is_computed_in_follows_from_the_precision():
    assert Placement("cpu", "bfloat16").dtype == torch.bfloat16
    assert Placement("cpu", "float32").dtype == torch.float32
    # bitsandbytes' kernels for the CPU have no half precision worth having.
    assert Placement("cpu", "nf4").dtype == torch.float32


def test_half_precision_on_a_gpu_without_bfloat16_is_float16(monkeypatch):
    monkeypatch.setattr(devices, "chosen_device", lambda _: "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for native, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, native=native: native)  # noqa: ARG005
        assert Placement("cuda", "nf4").dtype == dtype
