"""SAM's public files, name by name at true size, the decoders beside them, and what is said of others."""

# First: it makes torchvision usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
import json

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry

from rea2seg.checkpoints.sam import VIT_B, VIT_H, VIT_L, SamConfig, build_sam, load_decoder, sam_plan
from rea2seg.checkpoints.strict import check_fit
from rea2seg.errors import CheckpointError
from rea2seg.segmenters.sam import Sam
from rea2seg.structures import Prompt
from tests.public.lisa import LISA_7B, write_lisa
from tests.public.sam import narrow_sam, write_sam


@pytest.mark.parametrize(("name", "config"), [("vit_b", VIT_B), ("vit_l", VIT_L), ("vit_h", VIT_H)])
def test_at_true_size_the_architecture_is_read_off_the_shapes_and_every_tensor_fits(name, config, tmp_path):
    with torch.device("meta"):
        public = sam_model_registry[name]().state_dict()
        own = build_sam(config).state_dict()
    assert SamConfig.of(public, tmp_path) == config
    check_fit(own, tmp_path, public)
    counted = [sum(key.startswith(part) for key in public) for part in ("image_enc", "prompt_enc", "mask_dec")]
    assert counted[1:] == [17, 120]
    if name == "vit_h":
        assert counted == [457, 17, 120]


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    file = tmp_path_factory.mktemp("sam") / "sam_vit_h.pth"
    write_sam(file, seed=5)
    return file


def test_the_pickle_the_safetensors_and_the_sam_inside_a_lisa_are_one(stock, tmp_path):
    write_lisa(tmp_path / "lisa", LISA_7B)
    save_file(torch.load(stock, weights_only=True), tmp_path / "sam.safetensors")
    plans = [sam_plan(place) for place in (stock, stock.parent, tmp_path / "sam.safetensors", tmp_path / "lisa")]
    assert len({plan.config for plan in plans}) == 1
    for plan in plans[1:]:
        assert plan.tensors.keys() == plans[0].tensors.keys()
        assert all(tensor.equal(plan.tensors[name]) for name, tensor in plans[0].tensors.items())


def refusal(call, *arguments):
    with pytest.raises(CheckpointError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sam_of_another_library_is_refused(tmp_path):
    save_file({"vision_encoder.pos_embed": torch.zeros(1, 64, 64, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["SamModel"]}))
    told = "is not a SAM with the names and shapes of segment-anything: use sam_vit_h_4b8939.pth or the like"
    assert refusal(sam_plan, tmp_path) == f"{tmp_path} {told}"


def test_a_checkpoint_without_a_decoder_is_told_to_leave_it_out(stock, tmp_path):
    save_file({"model.norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    told = "holds no decoder of a SAM: name a checkpoint of LISA, or leave token_decoder out of the config"
    assert refusal(load_decoder, tmp_path, sam_plan(stock)) == f"{tmp_path} {told}"


@pytest.mark.parametrize("change", ["other values", "another width"])
def test_a_decoder_that_was_trained_on_other_embeddings_is_refused(stock, tmp_path, change):
    state = narrow_sam(seed=6).state_dict()
    if change == "another width":
        state["image_encoder.neck.0.weight"] = torch.zeros(256, 48, 1, 1)
    torch.save(state, tmp_path / "other.pth")
    told = f"was trained with another SAM than {stock} (image_encoder.neck.0.weight differs)"
    wanted = f"{tmp_path / 'other.pth'} {told}: name the SAM it began with, or itself, as the segmenter's weights"
    assert refusal(load_decoder, tmp_path / "other.pth", sam_plan(stock)) == wanted
    assert refusal(lambda: Sam(stock, tmp_path / "other.pth", device="cpu")) == wanted
    assert refusal(lambda: list(Sam.examine(str(stock), str(tmp_path / "other.pth")))) == wanted


def test_a_decoder_whose_encoder_was_rounded_is_taken(stock, tmp_path):
    state = torch.load(stock, weights_only=True)
    rounded = {name: weight.bfloat16() if "encoder" in name else weight for name, weight in state.items()}
    torch.save(rounded, tmp_path / "rounded.pth")
    assert load_decoder(tmp_path / "rounded.pth", sam_plan(stock)) is not None


def test_the_decoder_for_tokens_can_be_left_to_single_masks(stock, tmp_path):
    """LISA's loss never saw the three masks of an ambiguous prompt: these can come from the stock decoder."""
    inside = {name: 1.5 * weight for name, weight in narrow_sam(seed=8).mask_decoder.state_dict().items()}
    save_file(inside, tmp_path / "decoder.safetensors")
    both = Sam(stock, tmp_path / "decoder.safetensors", "all", device="cpu")
    single = Sam(stock, tmp_path / "decoder.safetensors", "single", device="cpu")
    plain = Sam(stock, device="cpu")
    (embedding,) = plain.encode([torch.zeros(3, 40, 60, dtype=torch.uint8)])
    prompt = Prompt(token=torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(0)))
    one, three = (lambda sam: sam.decode(embedding, prompt, False)), (lambda sam: sam.decode(embedding, prompt, True))
    assert one(single).lowres.equal(one(both).lowres)
    assert not one(single).lowres.equal(one(plain).lowres)
    assert three(single).lowres.equal(three(plain).lowres)
    assert not three(both).lowres.equal(three(plain).lowres)
