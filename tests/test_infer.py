import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rea2seg import infer
from rea2seg.cli import Parser, boolean, natural, positive, run, table
from rea2seg.errors import InputError, OutputError
from rea2seg.masks import decode_rle
from rea2seg.output import replacing, writable_folder, write_json
from tests.fakes import PaintEvaluator, canvas_of_paint, painted

IMAGE = canvas_of_paint((60, 80))
PAINT = {
    "note": "paint is for tests; for photographs use a camera",
    "generator": {"class_path": "tests.fakes.PaintGenerator"},
    "segmenter": {"class_path": "tests.fakes.PaintSegmenter"},
    "searches": [
        {"class_path": f"rea2seg.generator.candidates.{name}"}
        for name in ("PromptSearch", "CoreSearch", "AttentionSearch")
    ],
    "selector": {
        "class_path": "rea2seg.ranking.ByEvaluator",
        "init_args": {"evaluator": {"class_path": "tests.fakes.PaintEvaluator"}},
    },
}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a picture and a config."""
    Image.fromarray(IMAGE.permute(1, 2, 0).numpy()).save(tmp_path / "paint.png")
    (tmp_path / "paint.yaml").write_text(yaml.safe_dump(PAINT))
    return tmp_path


def call(shop: Path, *more: str, image: str = "paint.png", query: str = "the red box") -> int:
    paths = ["--image", str(shop / image), "--config", str(shop / "paint.yaml"), "--out", str(shop / "out")]
    return infer.main([*paths, "--query", query, *more])


def result_of(shop: Path) -> dict:
    return json.loads((shop / "out" / "result.json").read_text())


def test_all_files_are_written_and_the_ranking_printed(shop, capsys):
    assert call(shop) == 0
    names = {"result.json", "mask_1.png", "mask_2.png", "mask_3.png", "overlay.png", "candidates.png", "attention.png"}
    assert {path.name for path in (shop / "out").iterdir()} == names
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0].split() == ["rank", "score", "source", "quality", "area"]
    assert lines[2].split() == ["1", "1.000", "prompt", "0.920", "12.5%"]
    assert lines[-1] == "paint is for tests; for photographs use a camera"


def test_the_result_holds_every_candidate_best_first(shop):
    call(shop)
    result = result_of(shop)
    keys = ["version", "config", "query", "image", "no_target", "ranking", "reply", "warnings", "timings_s"]
    assert list(result) == keys
    assert (result["config"], result["query"], result["reply"]) == ("paint", "the red box", "It is [SEG].")
    assert result["image"] == {"path": str(shop / "paint.png"), "width": 80, "height": 60}
    assert set(result["timings_s"]) == {"load", "ground", "search", "rank"}
    ranking = result["ranking"]
    assert [entry["rank"] for entry in ranking] == list(range(1, len(ranking) + 1))
    assert sorted(entry["index"] for entry in ranking) == list(range(len(ranking)))
    assert [entry["score"] for entry in ranking] == sorted((entry["score"] for entry in ranking), reverse=True)
    assert {entry["source"] for entry in ranking} == {"prompt", "core", "attention"}
    fields = ["rank", "index", "source", "score", "confidence", "fallback", "quality", "seed_xy", "segmentation"]
    for entry in ranking:
        assert list(entry) == [*fields, "bbox", "area", "reasoning"]
        assert (entry["seed_xy"] is None) == (entry["source"] != "attention")
        mask = decode_rle(entry["segmentation"])
        left, top, width, height = entry["bbox"]
        assert mask[top : top + height, left : left + width].sum() == mask.sum() == entry["area"]
    assert decode_rle(ranking[0]["segmentation"]).equal(painted(IMAGE, "red"))


def test_masks_are_pictures_of_the_displayed_size(shop):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IMAGE.permute(1, 2, 0).numpy()).rotate(90, expand=True).save(shop / "turned.png", exif=exif)
    assert call(shop, image="turned.png") == 0
    for rank, entry in enumerate(result_of(shop)["ranking"][:3], 1):
        with Image.open(shop / "out" / f"mask_{rank}.png") as picture:
            assert (picture.mode, picture.size) == ("L", (80, 60))
            mask = torch.from_numpy(np.array(picture))
        assert set(mask.unique().tolist()) == {0, 255}
        assert (mask > 0).equal(decode_rle(entry["segmentation"]))


def test_the_same_command_gives_the_same_result_and_another_seed_other_points(shop):
    results, pictures = [], []
    for arguments in ([], [], ["--seed", "3"]):
        call(shop, *arguments)
        results.append({key: value for key, value in result_of(shop).items() if key != "timings_s"})
        pictures.append((shop / "out" / "attention.png").read_bytes())
    assert results[0] == results[1]
    assert pictures[0] == pictures[1] != pictures[2]


def test_files_of_an_earlier_result_that_this_one_has_not_are_removed(shop):
    call(shop, "--top-k", "5")
    assert (shop / "out" / "mask_5.png").exists()
    (shop / "out" / "mask_of_mine.png").touch()
    call(shop, "--top-k", "2")
    assert sorted(path.name for path in (shop / "out").glob("mask_*")) == [
        "mask_1.png",
        "mask_2.png",
        "mask_of_mine.png",
    ]


def test_masks_of_a_folder_that_holds_no_result_are_left_alone(shop):
    (shop / "out").mkdir()
    (shop / "out" / "mask_9.png").touch()
    assert call(shop) == 0
    assert (shop / "out" / "mask_9.png").exists()


def test_reasoning_is_switched_on_from_outside(shop):
    call(shop, "--reasoning", "true")
    assert result_of(shop)["ranking"][0]["reasoning"] == "I look for the red box."
    call(shop, "--reasoning", "false")
    assert result_of(shop)["ranking"][0]["reasoning"] == ""


def test_a_low_estimate_may_mean_that_there_is_no_target(shop, capsys):
    """The evaluator of the paint shop is sure of its masks, so that only a threshold of one refuses them or not."""
    assert call(shop) == 0
    assert result_of(shop)["no_target"] is False
    assert "no target" not in capsys.readouterr().out
    assert call(shop, "--no-target-below", "1", query="the pink box") == 0
    assert result_of(shop)["no_target"] is True
    assert len(result_of(shop)["ranking"]) > 0
    assert "no target: nothing in the image seems to be meant" in capsys.readouterr().out


def test_what_is_odd_but_legal_is_a_result_with_a_warning(shop, capsys):
    assert call(shop, query="the red box, nan") == 0
    assert "not finite" in capsys.readouterr().err
    assert {entry["source"] for entry in result_of(shop)["ranking"]} == {"prompt"}
    assert len(result_of(shop)["warnings"]) == 1


def test_candidates_that_cannot_be_scored_are_marked(shop, capsys):
    assert call(shop, query="mumble the red box") == 0
    entries = result_of(shop)["ranking"]
    assert all(entry["score"] is None and entry["fallback"] for entry in entries)
    assert [entry["quality"] for entry in entries] == sorted((entry["quality"] for entry in entries), reverse=True)
    assert "failed" in capsys.readouterr().out


def test_no_candidates_are_an_empty_result(shop):
    (shop / "paint.yaml").write_text(yaml.safe_dump(PAINT | {"searches": []}))
    assert call(shop) == 0
    assert result_of(shop)["ranking"] == []
    assert result_of(shop)["warnings"] == ["no candidate masks were found"]
    assert {path.name for path in (shop / "out").iterdir()} == {
        "result.json",
        "overlay.png",
        "candidates.png",
        "attention.png",
    }


def test_a_pipeline_without_a_generator_has_no_attention_to_show(shop):
    call(shop)
    blind = deepcopy(PAINT)
    del blind["generator"]
    blind["searches"] = [{"class_path": "tests.fakes.WholeImage"}]
    (shop / "paint.yaml").write_text(yaml.safe_dump(blind))
    assert call(shop) == 0
    assert not (shop / "out" / "attention.png").exists()
    assert result_of(shop)["reply"] is None


def test_a_file_name_that_is_no_text_gets_a_result_like_any_other(shop, capsys):
    (shop / "paint.png").rename(shop / "\udcff.png")
    assert call(shop, "--out", str(shop / "out" / "\udcfe"), image="\udcff.png") == 0
    result = json.loads((shop / "out" / "\udcfe" / "result.json").read_text())
    assert result["image"]["path"] == str(shop / "\udcff.png")
    assert "\\udcfe" in capsys.readouterr().out


# Errors: one line, exit status 2, before any weights load


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "none.png"], "image 'none.png' does not exist"),
        (["--query", "  \n"], "the question is empty"),
        (["--query", "x" * 10_000], "characters"),
        (["--config", "nobody"], "no config is called 'nobody'"),
        (["--weights", "nowhere", "--config", "mini"], "do not exist"),
        (["--device", "toaster"], "'toaster' is not a device"),
        (["--out", "paint.png/out"], "cannot be written"),
        (["--top-k", "0"], "argument --top-k: '0' is not a whole number from 1 on"),
        (["--seed", "-1"], "argument --seed"),
        (["--reasoning", "maybe"], "'maybe' is neither true nor false"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_errors_are_one_line_and_status_2(shop, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(shop)
    monkeypatch.setattr(PaintEvaluator, "__init__", lambda *_, **__: pytest.fail("weights were loaded"))
    assert call(shop, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert not (shop / "out").exists() or not list((shop / "out").iterdir())


def test_missing_arguments_are_an_error_like_all_others(capsys):
    assert infer.main([]) == 2
    assert capsys.readouterr().err == ("error: the following arguments are required: --image, --query (see --help)\n")


def test_an_interrupt_is_status_130_and_leaves_no_half_of_a_file(shop, capsys, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(infer, "overlay", interrupt)
    assert call(shop) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert list((shop / "out").iterdir()) == []


def test_it_runs_as_a_module_without_a_traceback(shop):
    command = [sys.executable, "-m", "rea2seg.infer", "--image", str(shop / "none.png"), "--query", "the red box"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


# What commands share


def test_a_table_is_aligned():
    assert (
        table(["name", "n"], [["a", "1"], ["long name", "12"]])
        == "name        n\n-------------\na           1\nlong name  12"
    )


@pytest.mark.parametrize(
    ("kind", "good", "bad"), [(boolean, "true", "True"), (positive, "1", "0"), (natural, "0", "-1")]
)
def test_arguments_are_checked_by_what_they_mean(kind, good, bad):
    parser = Parser()
    parser.add_argument("--value", type=kind)
    assert parser.parse_args(["--value", good]).value in (True, 1, 0)
    with pytest.raises(InputError, match="--value"):
        parser.parse_args(["--value", bad])


def test_errors_of_several_lines_are_told_in_one(capsys):
    def command() -> int:
        raise InputError("first\n  second")

    assert run(command) == 2
    assert capsys.readouterr().err == "error: first second\n"


def on_the_gpu() -> int:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB ...")


def on_the_cpu() -> int:
    return len(torch.empty(1 << 50))


@pytest.mark.parametrize("command", [on_the_gpu, on_the_cpu])
def test_running_out_of_memory_is_told_in_one_line(capsys, command):
    assert run(command) == 2
    mends = "use a smaller image, --precision nf4 or --offload; python -m rea2seg.doctor shows what fits"
    assert capsys.readouterr().err == f"error: out of memory: {mends}\n"


def write_half(path: Path) -> None:
    with replacing(path) as place:
        place.write_text("half of")
        raise OSError("disk is full")


def test_a_file_is_whole_or_keeps_its_old_content(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": 2}, sort_keys=True)
    before = (tmp_path / "a.json").read_bytes()
    assert before == b'{\n  "a": 2,\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    with pytest.raises(OutputError, match="disk is full"):
        write_half(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", "a\0b"):
        with pytest.raises(OutputError, match="cannot be written"):
            writable_folder(place)
    assert writable_folder(tmp_path / "new" / "folder").is_dir()
    assert list((tmp_path / "new" / "folder").iterdir()) == []
