import hashlib
import io
import json
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tqdm import tqdm

from rea2seg.data.native import write_native
from rea2seg.evaluate.__main__ import main
from rea2seg.evaluate.records import read_command, read_rows
from rea2seg.evaluate.rows import KEYS
from rea2seg.synth.vocabulary import VERSION
from tests.evaluate.paint import PAINT, call, metrics_of, row_of, sample
from tests.fakes import PaintEvaluator, PaintGenerator

pytestmark = pytest.mark.usefixtures("unreported")


def test_metrics_are_per_category_and_the_average_counts_categories_alike(shop, capsys):
    assert call(shop) == 0
    metrics = metrics_of(shop)
    named = ["best_of_first", "calibration", "command", "no_target", "recall", "rows", "version"]
    assert list(metrics) == named
    names = [row["category"] for row in metrics["rows"]]
    assert names == ["geometric", "spatial", "attribute", "granularity=object", "granularity=part", "average"]
    average = row_of(metrics, "average")
    for metric in ("gIoU", "cIoU"):
        assert set(average[metric]) == set(KEYS)
        for key in KEYS:
            parts = [row_of(metrics, name)[metric][key] for name in ("geometric", "spatial")]
            assert average[metric][key] == pytest.approx(sum(parts) / 2, abs=1e-6)
    assert average["n"] == 6
    assert average["gIoU"]["top1"] == 1.0
    assert average["failures"] == {"fallback": 0, "no_candidates": 0}
    printed = capsys.readouterr().out
    assert "top1 minus it" in printed
    assert "0 of 27 groups fell back (0.00%); 0 samples without candidates" in printed


def test_the_command_is_told_without_paths_or_machines(shop):
    call(shop, "--limit", "3", "--without", "core", "--preset", "segzero", "--seed", "4", "--reasoning", "true")
    assert metrics_of(shop)["command"] == {
        "benchmark": "jsonl",
        "config": "paint",
        "data_seed": 0,
        "limit": 3,
        "no_target_below": None,
        "preset": "segzero",
        "reasoning": True,
        "samples": hashlib.sha256((shop / "data" / "samples.jsonl").read_bytes()).hexdigest(),
        "seed": 4,
        "split": "test",
        "without": ["core"],
    }
    assert (
        str(shop) not in (shop / "out" / "metrics.json").read_text() + (shop / "out" / "per_sample.jsonl").read_text()
    )


def test_per_sample_lines_hold_counts_and_ious(shop):
    call(shop, "--limit", "2")
    lines = [json.loads(line) for line in (shop / "out" / "per_sample.jsonl").read_text().splitlines()]
    assert [(line["id"], line["category"], line["granularity"]) for line in lines] == [
        ("s0", "geometric", "object"),
        ("s1", "geometric", "part"),
    ]
    for line in lines:
        for key in KEYS:
            assert line["iou"][key] == round(line["intersection"][key] / line["union"][key], 6)
        assert line["failures"] == {"fallback": 0, "no_candidates": 0}


def test_the_same_command_twice_gives_the_same_bytes(shop):
    call(shop, out="a")
    call(shop, out="b")
    for name in ("metrics.json", "per_sample.jsonl"):
        assert (shop / "a" / name).read_bytes() == (shop / "b" / name).read_bytes()


def count_questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    original = PaintGenerator._one

    def one(self, query):
        asked.append(query.id)
        return original(self, query)

    monkeypatch.setattr(PaintGenerator, "_one", one)
    return asked


def test_an_interrupted_run_goes_on_where_it_stopped(shop, monkeypatch, capsys):
    call(shop, out="whole")
    original, done = PaintGenerator._one, iter(range(5))

    def tires(self, query):
        if next(done, None) is None:
            raise KeyboardInterrupt
        return original(self, query)

    monkeypatch.setattr(PaintGenerator, "_one", tires)
    (shop / "out").mkdir()
    for name in ("metrics.json", "report.html"):
        (shop / "out" / name).write_text("of an earlier run")
    assert call(shop) == 130
    assert not (shop / "out" / "metrics.json").exists()
    assert not (shop / "out" / "report.html").exists()
    assert [row.id for row in read_rows(shop / "out")] == [f"s{place}" for place in range(5)]
    with (shop / "out" / "per_sample.jsonl").open("a") as file:
        file.write('{"id": "s5", "categ')  # the power went off
    monkeypatch.setattr(PaintGenerator, "_one", original)
    asked = count_questions(monkeypatch)
    capsys.readouterr()
    assert call(shop) == 0
    assert asked == ["s5", "s6", "s7", "s8"]
    assert "5 samples are kept" in capsys.readouterr().err
    for name in ("metrics.json", "per_sample.jsonl"):
        assert (shop / "out" / name).read_bytes() == (shop / "whole" / name).read_bytes()


def test_rows_that_are_not_the_first_samples_are_refused_and_not_counted_twice(shop, capsys):
    call(shop)
    others = (shop / "out" / "per_sample.jsonl").read_text().splitlines(keepends=True)
    (shop / "out" / "per_sample.jsonl").write_text("".join(others[-2:]))
    assert call(shop) == 2
    assert "'s7' comes twice" in capsys.readouterr().err


def test_who_is_stopped_in_the_middle_of_a_character_loses_that_line_alone(shop):
    write_native([sample(place, id=f"größe {place}") for place in range(3)], shop / "data")
    call(shop)
    rows = (shop / "out" / "per_sample.jsonl").read_bytes()
    (shop / "out" / "per_sample.jsonl").write_bytes(rows[: rows.rindex("öße".encode()) + 1])
    assert [row.id for row in read_rows(shop / "out")] == ["größe 0", "größe 1"]


def test_the_progress_bar_starts_at_what_is_kept(shop, monkeypatch):
    bars = []

    class Watched(tqdm):
        def __init__(self, *arguments, **about):
            super().__init__(*arguments, **{**about, "disable": False, "file": io.StringIO()})
            bars.append((self.initial, self))

    monkeypatch.setattr("rea2seg.evaluate.records.tqdm", Watched)
    call(shop, "--limit", "2")
    call(shop, "--limit", "5")
    call(shop, "--limit", "3")
    assert [(initial, bar.n, bar.total) for initial, bar in bars] == [(0, 2, 2), (2, 5, 5), (3, 3, 3)]


@pytest.mark.parametrize("change", ["seed", "config", "weights", "dataset", "picture", "code"])
def test_rows_of_anything_else_are_not_kept(shop, monkeypatch, change):
    paint = deepcopy(PAINT)
    (shop / "weights").mkdir()
    (shop / "weights" / "model").write_text("old")
    paint["segmenter"]["init_args"] = {"weights": str(shop / "weights")}
    (shop / "paint.yaml").write_text(yaml.safe_dump(paint))
    call(shop, "--limit", "2")
    if change == "config":
        paint["selector"]["init_args"]["group"] = 4
        (shop / "paint.yaml").write_text(yaml.safe_dump(paint))
    elif change == "weights":
        (shop / "weights" / "model").write_text("newer")
    elif change == "dataset":
        write_native([sample(place) for place in range(10)], shop / "data")
    elif change == "picture":
        picture = next((shop / "data" / "images").iterdir())
        Image.open(picture).rotate(180).save(picture)
    elif change == "code":
        monkeypatch.setattr("rea2seg.evaluate.records.code_stamp", lambda: "new")
    asked = count_questions(monkeypatch)
    call(shop, "--limit", "2", *(["--seed", "9"] if change == "seed" else []))
    assert asked == ["s0", "s1"]
    asked.clear()
    call(shop, "--limit", "2", *(["--seed", "9"] if change == "seed" else []))
    assert asked == []


def test_a_longer_run_keeps_the_rows_of_a_shorter_one_and_counts_its_own_alone(shop, monkeypatch):
    call(shop, "--limit", "2")
    asked = count_questions(monkeypatch)
    call(shop, "--limit", "4")
    assert asked == ["s2", "s3"]
    call(shop, "--limit", "3")
    assert asked == ["s2", "s3"]
    assert row_of(metrics_of(shop), "average")["n"] == len(list(read_rows(shop / "out"))) == 3


def test_weights_in_a_folder_beside_the_command_are_watched(shop, monkeypatch):
    monkeypatch.chdir(shop)
    Path("model").mkdir()
    Path("model", "weights").write_text("old")
    paint = deepcopy(PAINT)
    paint["segmenter"]["init_args"] = {"weights": "model"}
    (shop / "paint.yaml").write_text(yaml.safe_dump(paint))
    call(shop, "--limit", "1")
    Path("model", "weights").write_text("newer")
    asked = count_questions(monkeypatch)
    call(shop, "--limit", "1")
    assert asked == ["s0"]


def test_any_text_of_a_dataset_survives_being_written_and_read(shop, monkeypatch):
    odd = [sample(place, id=f"\u2028\x85{place}\udc80", category="\udc81") for place in range(2)]
    write_native(odd, shop / "data")
    assert call(shop) == 0
    assert [row.id for row in read_rows(shop / "out")] == [one.id for one in odd]
    assert metrics_of(shop)["rows"][0]["category"] == "\udc81"
    asked = count_questions(monkeypatch)
    call(shop)
    assert asked == []


def test_leaving_out_a_search_leaves_out_its_candidates(shop):
    counts = {}
    for name in ("prompt", "core", "attention"):
        assert call(shop, "--limit", "1", "--without", name, out=name) == 0
        counts[name] = len(next(read_rows(shop / name)).ranking)
    call(shop, "--limit", "1", "--without", "core", "--without", "attention", out="two")
    call(shop, "--limit", "1", "--without", "core", "attention", out="both")
    call(shop, "--limit", "1")
    everything = len(next(read_rows(shop / "out")).ranking)
    assert (counts["prompt"], counts["core"]) == (everything - 3, everything - 3)
    assert counts["attention"] == 6
    assert len(next(read_rows(shop / "two")).ranking) == len(next(read_rows(shop / "both")).ranking) == 3


def test_a_run_is_compared_with_another_sample_by_sample(shop, capsys, monkeypatch):
    call(shop, out="full")
    capsys.readouterr()
    assert call(shop, "--without", "core", "--compare", str(shop / "full")) == 0
    told = capsys.readouterr().out.split("gIoU: this run minus the other")[1]
    assert "no sample differs in: initial, top1, top3, oracle" in told
    assert "sign-flip test, 10000 permutations" in told
    assert call(shop, "--compare", str(shop / "nowhere")) == 2
    call(shop, "--limit", "2", out="short")
    capsys.readouterr()
    monkeypatch.setattr(PaintEvaluator, "__init__", lambda *_, **__: pytest.fail("weights were loaded"))
    assert call(shop, "--compare", str(shop / "short")) == 2
    assert "lacks 7 of these samples" in capsys.readouterr().err


def test_two_finished_runs_are_compared_without_running_anything(shop, capsys, monkeypatch):
    call(shop, out="full")
    call(shop, "--without", "attention", "--limit", "7", out="less")
    monkeypatch.setattr(PaintEvaluator, "__init__", lambda *_, **__: pytest.fail("weights were loaded"))
    capsys.readouterr()
    less, full = str(shop / "less"), str(shop / "full")
    assert main(["--compare", less, full, "--out", str(shop / "compared")]) == 0
    assert "gIoU: first run minus second run" in capsys.readouterr().out
    told = json.loads((shop / "compared" / "comparison.json").read_text())
    assert (told["first"]["without"], told["second"]["without"], told["permutations"]) == (["attention"], [], 10_000)
    lines = {(line["label"], line["key"]): line for line in told["rows"]}
    assert {label for label, _ in lines} >= {"geometric", "spatial", "attribute", "average"}
    line = lines["geometric", "random"]
    assert line["n"] == 3
    assert line["difference"]["mean"] == pytest.approx(line["first"] - line["second"], abs=2e-6)
    assert main(["--compare", full, less]) == 2
    assert "lacks 2 of these samples" in capsys.readouterr().err


def test_what_two_runs_to_compare_must_be(shop, capsys):
    call(shop, "--limit", "2", out="a")
    call(shop, "--limit", "2", "--preset", "lens", out="b")
    a, b = str(shop / "a"), str(shop / "b")
    refused = [
        (["--compare", a, b], "holds a run of another preset"),
        (["--compare", a, b, "--benchmark", "jsonl"], "leave out --benchmark"),
        (["--compare", a, a, a], "one run, or those of two"),
        (["--compare", a], "required: --benchmark"),
        (["--compare", a, str(shop)], "holds no per_sample.jsonl"),
    ]
    for arguments, words in refused:
        capsys.readouterr()
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    (shop / "a" / "metrics.json").unlink()
    assert main(["--compare", a, a]) == 2
    assert "has not come to its end" in capsys.readouterr().err


def test_runs_on_other_samples_are_not_compared_even_if_their_ids_agree(shop, capsys):
    call(shop, out="full")
    write_native([sample(place, "{}") for place in range(9)], shop / "data")
    capsys.readouterr()
    assert call(shop, "--preset", "lens", "--compare", str(shop / "full")) == 2
    assert "holds a run of another samples, preset" in capsys.readouterr().err
    drawn = ["--benchmark", "sgdr-synth", "--config", str(shop / "paint.yaml"), "--limit", "1", "--out"]
    assert main([*drawn, str(shop / "drawn")]) == 0
    assert read_command(shop / "drawn")["samples"] == f"version {VERSION}"
    assert main([*drawn, str(shop / "other"), "--data-seed", "1", "--compare", str(shop / "drawn")]) == 2
    assert "another data_seed" in capsys.readouterr().err


def test_the_drawn_benchmark_runs(shop):
    arguments = ["--config", str(shop / "paint.yaml"), "--limit", "3", "--out", str(shop / "synth")]
    assert main(["--benchmark", "sgdr-synth", "--split", "val", "--data-seed", "5", *arguments]) == 0
    assert [row.id for row in read_rows(shop / "synth")] == ["val-00000", "val-00001", "val-00002"]


def test_without_a_folder_nothing_is_written(shop, capsys):
    before = sorted(shop.rglob("*"))
    where = ["--root", str(shop / "data"), "--config", str(shop / "paint.yaml")]
    assert main(["--benchmark", "jsonl", *where, "--limit", "2"]) == 0
    assert sorted(shop.rglob("*")) == before
    assert "average" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--root", "nowhere"], "does not exist"),
        (["--split", "nosuch", "--benchmark", "sgdr-synth"], "--root belongs to --benchmark jsonl"),
        (["--preset", "lissa"], "invalid choice: 'lissa'"),
        (["--without", "nothing"], "invalid choice: 'nothing'"),
        (["--without", "prompt", "core", "attention"], "no search to find candidates with"),
        (["--limit", "0"], "'0' is not a whole number from 1 on"),
        (["--config", "nobody"], "no config is called 'nobody'"),
        (["--benchmark", "imagenet"], "invalid choice: 'imagenet'"),
        (["--compare", "nowhere"], "holds no per_sample.jsonl"),
    ],
)
def test_errors_are_one_line_and_status_2(shop, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(shop)
    monkeypatch.setattr(PaintEvaluator, "__init__", lambda *_, **__: pytest.fail("weights were loaded"))
    assert call(shop, *arguments) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert words in printed.err


def test_splits_and_roots_are_checked(capsys):
    assert main(["--benchmark", "sgdr-synth", "--split", "nosuch"]) == 2
    assert "no split 'nosuch'" in capsys.readouterr().err
    assert main(["--benchmark", "jsonl"]) == 2
    assert "needs --root DIR" in capsys.readouterr().err


def test_a_search_that_the_config_lacks_cannot_be_left_out(shop, capsys):
    (shop / "paint.yaml").write_text(yaml.safe_dump({**PAINT, "searches": PAINT["searches"][:1]}))
    assert call(shop, "--without", "core") == 2
    assert "config paint has no core search to leave out" in capsys.readouterr().err
