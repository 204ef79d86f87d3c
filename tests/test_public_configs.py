"""The packaged pipelines of public checkpoints, whole, on small files in the public layouts."""

# First: it makes torchvision, which transformers imports, usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
import json

import pytest
from PIL import Image

from rea2seg import Query, Rea2Seg, doctor, infer
from rea2seg.structures import Prompt
from rea2seg.synth import SgdrSynth
from tests.public.internvl import SHALLOW, write_internvl
from tests.public.lens import write_lens
from tests.public.lisa import LISA_7B, READ_7B, SESAME_7B, write_clip, write_lisa
from tests.public.sam import write_sam
from tests.public.sam2 import write_sam2

GRIDS = {
    "lisa_7b_v1": (16, 16),
    "read_llava15_7b": (24, 24),
    "rea2seg_llava15_7b": (24, 24),
    "rea2seg_lens_3b": (17, 23),  # 640 x 480 px in cells of 28
}
SILENT = "the model answered without [SEG]; its attention was read as if it had answered '[SEG].'"
WARNINGS = {"rea2seg_llava15_7b": [SILENT]}
FAMILIES = {"lisa_7b_v1": LISA_7B, "read_llava15_7b": READ_7B, "rea2seg_llava15_7b": SESAME_7B}


@pytest.fixture(scope="module", params=[*FAMILIES, "rea2seg_lens_3b"])
def small(request, tmp_path_factory):
    """The name of a config, and a folder with everything it names."""
    folder = tmp_path_factory.mktemp(request.param)
    write_internvl(folder / "evaluator", layout="original", sizes=SHALLOW)
    if request.param == "rea2seg_lens_3b":
        write_lens(folder / "generator", brief=True)
        (folder / "segmenter").mkdir()
        write_sam2(folder / "segmenter" / "sam2_hiera_large.pt", channels=256)
    else:
        family = FAMILIES[request.param]
        write_lisa(folder / "generator", family)
        write_clip(folder / "vision_tower", family.side)
        write_sam(folder / "segmenter" / "sam_vit_h.pth", seed=5)
    return request.param, folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("picture") / "scene.png"
    Image.fromarray(SgdrSynth("val", 0).sample(0).image.permute(1, 2, 0).numpy()).resize((160, 120)).save(file)
    return file


def test_infer_answers_and_writes_everything(small, picture, tmp_path, capsys):
    name, folder = small
    arguments = ["--config", name, "--weights", str(folder), "--image", str(picture), "--query", "the smallest cup"]
    assert infer.main([*arguments, "--out", str(tmp_path), "--device", "cpu"]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["config"] == name
    # Random weights make nothing stable enough for the attention search of SAM; the core needs only look-alikes.
    assert {entry["source"] for entry in result["ranking"]} >= {"prompt", "core"}
    scores = [entry["score"] for entry in result["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert not any(entry["fallback"] for entry in result["ranking"])
    assert result["warnings"] == WARNINGS.get(name, [])
    for file in ("mask_1.png", "overlay.png", "candidates.png", "attention.png"):
        with Image.open(tmp_path / file) as drawn:
            assert min(drawn.size) > 100


def test_every_seat_runs_as_its_config_says(small, picture):
    name, folder = small
    pipe = Rea2Seg.from_config(name, folder, device="cpu", precision="float32")
    (scene,) = pipe.scenes(Query.of(picture, "the smallest cup"))
    grounding = scene.grounding
    assert grounding.attention.shape[1:] == GRIDS[name]
    assert 0 < float(grounding.attention.sum()) < 1
    own = pipe.segmenter.decode(scene.embedding, Prompt(token=grounding.token), multimask=False)
    assert own.lowres.equal(scene.initial.lowres)
    if name in FAMILIES:
        assert pipe.segmenter.token_decoder is not pipe.segmenter.model.mask_decoder
        assert pipe.segmenter.token_masks == ("all" if name == "rea2seg_llava15_7b" else "single")
        assert list(pipe.generator.layers) == list(range(14, 31))
    else:
        assert list(pipe.generator.layers) == [33]
    tiled = pipe.selector.evaluator
    assert (tiled.image_tiles, tiled.image_tokens, tiled.mask_tokens) == (6, 256, 256)


def test_the_doctor_finds_nothing_wrong(small, capsys):
    name, folder = small
    assert doctor.main(["--config", name, "--weights", str(folder), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "FAIL" not in told
    for part in ("generator", "segmenter", "evaluator"):
        assert f"ok    {part:10} tensors" in told
