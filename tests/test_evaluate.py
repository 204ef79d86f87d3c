import hashlib
import json
import random
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rea2seg.data.native import write_native
from rea2seg.evaluate.__main__ import main
from rea2seg.evaluate.benchmarks import Benchmark, open_benchmark
from rea2seg.evaluate.judging import KEYS, Row, judge
from rea2seg.evaluate.records import read_command, read_rows
from rea2seg.evaluate.report import category_rows, comparison_table, difference_table, failure_line
from rea2seg.generator.candidates import AttentionSearch, CoreSearch, PromptSearch
from rea2seg.metrics import PRESETS, Overlap
from rea2seg.pipeline import Rea2Seg
from rea2seg.ranking import ByEvaluator
from rea2seg.rivals import quality
from rea2seg.structures import Candidate, Query, Region, Sample
from rea2seg.synth.vocabulary import VERSION
from tests.fakes import PaintEvaluator, PaintGenerator, PaintSegmenter, canvas_of_paint, painted

LISA = PRESETS["lisa"]
IMAGE = canvas_of_paint()
COLOURS = ("red", "green", "blue")
INSTANCES = tuple(Region(colour, painted(IMAGE, colour)) for colour in COLOURS)
PAINT: dict[str, Any] = {
    "generator": {"class_path": "tests.fakes.PaintGenerator"},
    "segmenter": {"class_path": "tests.fakes.PaintSegmenter"},
    "searches": [
        {"class_path": "rea2seg.generator.candidates.PromptSearch"},
        {"class_path": "rea2seg.generator.candidates.CoreSearch"},
        {"class_path": "rea2seg.generator.candidates.AttentionSearch"},
    ],
    "selector": {
        "class_path": "rea2seg.ranking.ByEvaluator",
        "init_args": {"evaluator": {"class_path": "tests.fakes.PaintEvaluator"}},
    },
}


def sample(place: int, text: str = "the {} box", **about: Any) -> Sample:
    colour = COLOURS[place % 3]
    category = ("geometric", "spatial", "attribute")[(place // 3) % 3]
    granularity = ("object", "part")[place % 2]
    made = Sample(
        f"s{place}", IMAGE, text.format(colour), painted(IMAGE, colour), None, category, "colour", granularity
    )
    return replace(made, **{"instances": INSTANCES, **about})


def pipeline(*searches: Any) -> Rea2Seg:
    found = list(searches) or [PromptSearch(), CoreSearch(), AttentionSearch()]
    return Rea2Seg(PaintSegmenter(), found, ByEvaluator(PaintEvaluator()), PaintGenerator())


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a config and a dataset of nine questions, three in each of three categories."""
    (tmp_path / "paint.yaml").write_text(yaml.safe_dump(PAINT))
    write_native([sample(place) for place in range(9)], tmp_path / "data")
    return tmp_path


def call(shop: Path, *more: str, out: str = "out") -> int:
    where = ["--root", str(shop / "data"), "--config", str(shop / "paint.yaml"), "--out", str(shop / out)]
    return main(["--benchmark", "jsonl", *where, *more])


def metrics_of(shop: Path, out: str = "out") -> dict[str, Any]:
    return json.loads((shop / out / "metrics.json").read_text())


def row_of(metrics: dict[str, Any], category: str) -> dict[str, Any]:
    (row,) = [row for row in metrics["rows"] if row["category"] == category]
    return row


# One sample


def test_every_answer_is_measured_against_the_truth():
    row = judge(pipeline(), sample(0), "the blue box", LISA)
    assert list(row.overlaps) == list(KEYS)
    whole = int(painted(IMAGE, "red").sum())
    ious = {key: overlap.intersection / overlap.union for key, overlap in row.overlaps.items()}
    assert row.overlaps["top1"] == row.overlaps["oracle"] == Overlap(whole, whole)
    assert ious["top3"] == 1.0
    assert ious["initial"] == pytest.approx(16 * 32 / (20 * 36))  # the box and a rim of two pixels
    assert ious["quality"] == pytest.approx(1 / 3)  # the highest estimate is that of everything colourful
    assert ious["agreement"] == ious["attention"] == 1.0
    assert ious["blind"] < 0.5
    assert ious["instance"] in (0.0, 1.0)
    assert (row.groups, row.fallback, row.warnings) == (-(-row.candidates // 5), 0, ())


def test_the_blind_evaluator_judges_the_same_groups_with_another_question():
    pipe = pipeline()
    judge(pipe, sample(0), "the blue box", LISA)
    assert pipe.selector.evaluator.asked == ["the red box", "the blue box"]


def test_best_of_three_is_chosen_among_the_first_three_alone():
    class Worst(PaintEvaluator):
        def score(self, query, groups):
            return [[replace(score, iou=1 - score.iou) for score in group] for group in super().score(query, groups)]

    pipe, one = replace(pipeline(), selector=ByEvaluator(Worst())), sample(0)
    row = judge(pipe, one, "the blue box", LISA)
    ranking = pipe.compare(pipe.scenes(Query(one.image, one.query, one.id)))
    first = [float((c.mask & one.truth).sum() / (c.mask | one.truth).sum()) for c in ranking.top(3)]
    ious = {key: overlap.intersection / overlap.union for key, overlap in row.overlaps.items()}
    assert ious["top1"] == pytest.approx(first[0])
    assert ious["top3"] == pytest.approx(max(first))
    assert ious["oracle"] == 1.0 > ious["top3"]


def test_groups_without_scores_and_samples_without_candidates_are_counted():
    mumbling = judge(pipeline(), sample(0, "mumble the {} box"), "the blue box", LISA)
    assert mumbling.fallback == mumbling.groups > 0
    nothing = judge(pipeline(lambda *_: []), sample(0), "the blue box", LISA)
    assert (nothing.candidates, nothing.groups, nothing.fallback) == (0, 0, 0)
    assert nothing.overlaps["top1"] == nothing.overlaps["blind"] == Overlap(0, int(painted(IMAGE, "red").sum()))
    assert failure_line([mumbling, nothing]) == (
        f"{mumbling.groups} of {mumbling.groups} groups fell back (100.00%); 1 samples without candidates"
    )


def test_where_nothing_answers_the_question_only_an_empty_answer_is_right():
    row = judge(pipeline(), sample(0, truth=None), "the blue box", LISA)
    assert row.overlaps["top1"].intersection == 0 < row.overlaps["top1"].union
    assert judge(pipeline(lambda *_: []), sample(0, truth=None), "x", LISA).overlaps["top1"] == Overlap(0, 0)


def test_keys_that_have_no_meaning_for_a_pipeline_are_left_out():
    def given(scene: object, segmenter: object) -> list[Candidate]:  # noqa: ARG001
        return [Candidate(painted(IMAGE, colour), "given", 0.5) for colour in COLOURS]

    row = judge(Rea2Seg(PaintSegmenter(), [given], quality), sample(0, instances=()), "x", LISA)
    assert list(row.overlaps) == ["top1", "top3", "oracle", "quality", "random", "blind"]
    assert row.groups == 0


def test_random_choices_depend_on_the_seed_and_the_sample_alone():
    rows = [judge(pipeline(), sample(0), "x", LISA, seed=seed) for seed in (0, 0, 1, 2, 3, 4, 5)]
    assert rows[0] == rows[1]
    assert len({row.overlaps["instance"] for row in rows}) == 2


def test_a_row_survives_being_written():
    row = judge(pipeline(), sample(0, "the {} box, nan"), "the blue box", LISA)
    assert row.warnings
    assert Row.from_json(json.loads(json.dumps(row.to_json(LISA)))) == row


# Where samples come from


def test_the_other_question_is_the_next_one_that_differs():
    texts = ["a", "a", "b", "a"]
    dataset = Benchmark(4, lambda i: sample(0, texts[i]), 4)
    assert [dataset.other_question(i) for i in range(4)] == ["b", "b", "a", "b"]
    endless = Benchmark(2, lambda i: sample(0, str(i // 2)))
    assert endless.other_question(1) == "1"  # beyond the limit
    assert Benchmark(2, lambda _: sample(0, "a"), 2).other_question(0) == "a"


def test_a_limit_takes_the_first_samples(shop):
    assert open_benchmark("jsonl", shop / "data", "test", 0, None).count == 9
    assert open_benchmark("jsonl", shop / "data", "test", 0, 4).count == 4
    assert open_benchmark("jsonl", shop / "data", "test", 0, 40).count == 9
    assert open_benchmark("sgdr-synth", None, "test", 0, 3).sample(0).id.startswith("test-")


# The whole command


def test_metrics_are_per_category_and_the_average_counts_categories_alike(shop, capsys):
    assert call(shop) == 0
    metrics = metrics_of(shop)
    assert list(metrics) == ["command", "rows", "version"]
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
    assert "gIoU: top1 minus" in printed
    assert "0 of 27 groups fell back (0.00%); 0 samples without candidates" in printed


def test_the_command_is_told_without_paths_or_machines(shop):
    call(shop, "--limit", "3", "--without", "core", "--preset", "segzero", "--seed", "4", "--reasoning", "true")
    assert metrics_of(shop)["command"] == {
        "benchmark": "jsonl",
        "config": "paint",
        "data_seed": 0,
        "limit": 3,
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
    assert call(shop) == 130
    assert not (shop / "out" / "metrics.json").exists()
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


@pytest.mark.parametrize("change", ["seed", "config", "weights", "dataset", "code"])
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
        counts[name] = next(read_rows(shop / name)).candidates
    call(shop, "--limit", "1", "--without", "core", "--without", "attention", out="two")
    call(shop, "--limit", "1", "--without", "core", "attention", out="both")
    call(shop, "--limit", "1")
    everything = next(read_rows(shop / "out")).candidates
    assert (counts["prompt"], counts["core"]) == (everything - 3, everything - 3)
    assert counts["attention"] == 6
    assert next(read_rows(shop / "two")).candidates == next(read_rows(shop / "both")).candidates == 3


def test_two_runs_are_compared_sample_by_sample(shop, capsys):
    call(shop, out="full")
    capsys.readouterr()
    assert call(shop, "--without", "core", "--compare", str(shop / "full")) == 0
    table = capsys.readouterr().out.split("gIoU: this run minus the other")[1].splitlines()
    assert [line.split()[:2] for line in table if line.startswith("top1")] == [["top1", "+0.000"]]
    assert call(shop, "--compare", str(shop / "nowhere")) == 2
    call(shop, "--limit", "2", out="short")
    capsys.readouterr()
    assert call(shop, "--compare", str(shop / "short")) == 2
    assert "lacks 4 of these samples, such as 's2'" in capsys.readouterr().err


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


# Tables


def made_row(place: int, category: str, **ious: float) -> Row:
    pairs = {key: Overlap(round(1000 * value), 1000) for key, value in ious.items()}
    return Row(str(place), category, "", "object", pairs, 1, 1, 0)


def test_a_key_that_some_samples_lack_is_left_out_and_attributes_do_not_count():
    rows = [made_row(0, "a", top1=1.0, instance=0.5), made_row(1, "b", top1=0.5), made_row(2, "attribute", top1=0.0)]
    summaries = category_rows(rows, LISA)
    assert [summary["category"] for summary in summaries] == ["a", "b", "attribute", "average"]
    assert summaries[-1]["gIoU"] == {"top1": 0.75}
    assert [s["category"] for s in category_rows(rows[2:], LISA)] == ["attribute"]


def test_differences_are_signed_and_bracketed():
    draw = random.Random(0)
    rows = [made_row(i, "ab"[i % 2], top1=0.6 + draw.random() / 10, blind=0.4) for i in range(40)]
    line = difference_table(rows, LISA).splitlines()[-1].split()
    mean, low, high = (float(text.strip("[],")) for text in line[1:])
    assert low < mean < high
    assert low > 0.2
    assert comparison_table(rows, rows, LISA).count("+0.000") == 6
