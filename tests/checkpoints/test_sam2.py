"""Which tensors of SAM 2's files are needed, and which architecture they tell."""

# First: it makes torchvision usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rea2seg.checkpoints.sam2 import BASE_PLUS, IMAGE_HALF, LARGE, SMALL, TINY, Sam2Config
from rea2seg.errors import CheckpointError
from rea2seg.segmenters.sam2 import Sam2Model, load_heads, load_sam2
from tests.public.sam2 import narrow_sam2, public_sam2, shapes_only, write_sam2

CONFIGS = {"tiny": TINY, "small": SMALL, "base_plus": BASE_PLUS, "large": LARGE}
SOURCE = Path("memory")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    place = tmp_path_factory.mktemp("sam2") / "sam2.1_hiera_tiny.pt"
    write_sam2(place, "tiny", "2.1", width=4, channels=16)
    return place


@pytest.fixture(scope="module")
def tensors(file):
    return torch.load(file, weights_only=True)["model"]


@pytest.mark.parametrize(("version", "count"), [("2.0", (468, 516, 612, 900)), ("2.1", (471, 519, 615, 903))])
def test_published_files_of_every_size_fit_name_by_name_and_shape_by_shape(version, count):
    for (size, config), tensors_in_all in zip(CONFIGS.items(), count, strict=True):
        public = public_sam2(size, version).state_dict()
        assert len(public) == tensors_in_all
        assert Sam2Config.of(public, SOURCE) == config
        with shapes_only():
            own = Sam2Model(config).state_dict()
        needed = {name: tensor.shape for name, tensor in IMAGE_HALF.native(public).items()}
        assert needed == {name: tensor.shape for name, tensor in own.items()}


def test_what_is_left_out_is_video_and_nothing_is_on_the_list_in_vain(tensors):
    dropped = tensors.keys() - IMAGE_HALF.native(tensors).keys()
    image = ("image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed")
    assert dropped == {name for name in tensors if not name.startswith(image)}
    for pattern in IMAGE_HALF.unused:
        for choice in pattern.split("|") if "(" not in pattern else [pattern]:
            assert any(re.fullmatch(choice, name) for name in dropped)


def test_a_narrow_file_tells_its_widths(tensors):
    assert Sam2Config.of(tensors, SOURCE) == replace(TINY, width=4, channels=16)


def test_without_the_tensors_for_video_a_file_is_as_good(tensors, tmp_path):
    save_file(IMAGE_HALF.native(tensors), tmp_path / "image.safetensors")
    model = load_sam2(tmp_path)
    assert all(value.equal(tensors[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("drop", "missing tensors: sam_mask_decoder.conv_s0.weight"),
        ("rename", "missing tensors: sam_mask_decoder.conv_s0.weight; unexpected tensors: a_new_name"),
        ("reshape", "mismatched tensors: sam_mask_decoder.conv_s0.weight [2, 16] instead of [2, 16, 1, 1]"),
        ("no width", "missing tensors: image_encoder.neck.convs.0.conv.weight"),
        ("surplus", "unexpected tensors: obj_ptr_proj.layers.3.weight"),
        ("depth", "11 blocks image_encoder.trunk.blocks.*, not 12, 16, 24, 48"),
        ("transformers", "0 blocks image_encoder.trunk.blocks.*, not 12, 16, 24, 48"),
        ("odd", "widths that attention heads do not divide (4, 12)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_file_and_the_tensor(tensors, tmp_path, change, told):
    state, place = dict(tensors), tmp_path / "sam2_hiera_tiny.pt"
    named, neck = "sam_mask_decoder.conv_s0.weight", "image_encoder.neck.convs.0.conv.weight"
    if change == "drop":
        del state[named]
    elif change == "rename":
        state["a_new_name"] = state.pop(named)
    elif change == "reshape":
        state[named] = state[named][..., 0, 0]
    elif change == "no width":
        del state[neck]
    elif change == "surplus":
        state["obj_ptr_proj.layers.3.weight"] = torch.zeros(1)
    elif change == "depth":
        state = {name: value for name, value in state.items() if ".blocks.11." not in name}
    elif change == "transformers":
        state = {name.replace("image_encoder.trunk", "vision_encoder"): value for name, value in state.items()}
    else:
        state[neck] = state[neck][:12]
    torch.save({"model": state}, place)
    with pytest.raises(CheckpointError) as error:
        load_sam2(place)
    assert str(error.value).startswith(f"{place} ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pickle_of_a_whole_model_is_not_run(tmp_path):
    torch.save(narrow_sam2("tiny", "2.0", width=4, channels=16), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="pickle of more than tensors"):
        load_sam2(tmp_path / "model.pt")


def test_the_heads_of_another_size_are_refused(file):
    with pytest.raises(CheckpointError, match="another size"):
        load_heads(file, replace(LARGE, width=4, channels=16))
