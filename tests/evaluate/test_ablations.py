import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import yaml

from rea2seg.config import Config, load_config
from rea2seg.errors import ConfigError
from rea2seg.evaluate.__main__ import main as evaluate
from rea2seg.evaluate.ablation_tables import sentence, tables_of
from rea2seg.evaluate.ablations import main
from rea2seg.evaluate.effects import Outcome, outcomes_of
from rea2seg.evaluate.records import read_rows
from rea2seg.evaluate.sharing import Common, Workshop
from rea2seg.evaluate.variants import Table, Variant, changed, read_table, without
from rea2seg.rivals import quality
from rea2seg.structures import Candidate, Query, Ranking, Scene
from tests.evaluate.paint import IMAGE, LISA, PAINT, call, found, made_row
from tests.fakes import PaintEvaluator, PaintSegmenter

SHIPPED = Path(__file__).parents[2] / "configs" / "evaluate" / "ablations.yaml"
VARIANTS: list[dict[str, Any]] = [
    {"name": "without core", "without": ["core"]},
    {"name": "one mask", "change": {"searches.attention.keep": 1}, "spread": True},
    {"name": "groups of one", "change": {"selector.group": 1}, "claim": "Groups of five beat groups of one"},
    {"name": "groups of five", "change": {"selector.group": 5}},
]


def ablate(shop: Path, *more: str, variants: Sequence[dict[str, Any]] = VARIANTS, out: str = "out") -> int:
    (shop / "table.yaml").write_text(yaml.safe_dump({"shuffles": 3, "variants": list(variants)}))
    where = ["--root", str(shop / "data"), "--config", str(shop / "paint.yaml"), "--out", str(shop / out)]
    return main(["--benchmark", "jsonl", "--table", str(shop / "table.yaml"), *where, *more])


def paint_config(shop: Path, **seats: Any) -> Config:
    return load_config(shop / "paint.yaml", seed=0, **seats)


# Variants


def test_arguments_are_found_by_their_names_and_searches_by_theirs(shop):
    config = paint_config(shop)
    new = changed(changed(config, "searches.attention.seeds.kept", 3), "selector.evaluator.reasoning", True)
    assert new.seats["searches"][2]["init_args"]["seeds"]["kept"] == 3
    assert new.seats["selector"]["init_args"]["evaluator"]["init_args"]["reasoning"] is True
    assert new.seats["searches"][:2] == config.seats["searches"][:2]
    assert config.seats["searches"][2]["init_args"]["seeds"]["kept"] == 16
    named = changed(config, "searches.AttentionSearch.keep", 2)
    assert named.seats["searches"][2]["init_args"]["keep"] == 2


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("selector.groop", "groop"),
        ("evaluator.reasoning", "evaluator"),
        ("searches.atention.keep", "atention"),
        ("searches.prompt.keep", "keep"),
        ("selector.group.size", "size"),
    ],
)
def test_an_argument_that_is_not_there_cannot_be_changed(shop, key, name):
    with pytest.raises(ConfigError, match=f"has no '{key}' to change: there is no '{name}'"):
        changed(paint_config(shop), key, 1)


def test_a_table_says_what_is_wrong_with_it(tmp_path):
    wrong = {
        "nmae": [{"nmae": "x"}],
        "'pipeline'": [{"name": "pipeline"}],
        "'a b'": [{"name": "a b"}, {"name": "a_b"}],
        "'../a'": [{"name": "../a"}],
        "spread": [{"name": "a", "spread": "sometimes"}],
    }
    for word, variants in wrong.items():
        (tmp_path / "table.yaml").write_text(yaml.safe_dump({"variants": variants}))
        with pytest.raises(ConfigError, match=word) as told:
            read_table(tmp_path / "table.yaml")
        assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match="cannot be used"):
        read_table(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ({"change": {"selector.groop": 1}}, "variant 'wrong': config paint has no 'selector.groop'"),
        ({"change": {"selector.group": "many"}}, "variant 'wrong': config paint"),
        ({"change": {"segmenter.weights": "weights://small"}}, "variant 'wrong': config paint comes without weights"),
        (
            {"without": ["prompt", "core", "attention"]},
            "variant 'wrong': leaving out prompt, core, attention leaves no",
        ),
    ],
)
def test_a_wrong_variant_is_named_before_anything_is_loaded(shop, capsys, monkeypatch, variant, words):
    monkeypatch.setattr(PaintSegmenter, "__init__", lambda *_, **__: pytest.fail("weights were loaded"))
    assert ablate(shop, variants=[{"name": "wrong", **variant}]) == 2
    printed = capsys.readouterr().err
    assert (words in printed, printed.count("\n")) == (True, 1)


def test_the_shipped_table_fits_mini_and_tests_what_the_paper_does():
    table, config = read_table(SHIPPED), load_config("mini", seed=0)
    configs = {variant.name: variant.of(config) for variant in table.variants}
    assert SHIPPED.read_text().splitlines()[0].startswith("# python -m rea2seg.evaluate.ablations --table configs/")
    assert {name for name, own in configs.items() if own.text() == config.text()} == {
        "15 candidates",
        "order by attention",
        "groups of five",
        "read by expectation",
        "without reasoning",
        "without stage 2",  # As long as mini has no adapter.
    }
    assert table.shuffles == 5
    for name in ("without attention", "without core", "without prompt"):
        assert len(configs[name].seats["searches"]) == 2


def test_every_variant_of_the_sweep_changes_one_search_of_mini():
    config = load_config("mini")
    for variant in read_table(SHIPPED.with_name("sweep.yaml")).variants:
        changed = variant.of(config)
        pairs = zip(config.seats["searches"], changed.seats["searches"], strict=True)
        assert sum(ours != theirs for ours, theirs in pairs) == 1, variant.name
        assert load_config("mini", **changed.seats)


def test_the_commented_variant_of_the_shipped_table_is_one():
    lines = SHIPPED.read_text().splitlines()
    start = lines.index("  # - name: smaller evaluator")
    (variant,) = yaml.safe_load("\n".join(line.replace("  # ", "", 1) for line in lines[start:]))
    small = Variant(**variant).of(load_config("mini")).seats["selector"]["init_args"]["evaluator"]["init_args"]
    assert (small["weights"], small["adapter"]) == ("weights://evaluator_small", None)


# Sharing


def test_equal_seats_are_built_once_and_different_ones_are_not(shop):
    config, workshop = paint_config(shop), Workshop()
    full = workshop.pipeline(config)
    small = workshop.pipeline(changed(config, "selector.group", 1))
    thinks = workshop.pipeline(changed(config, "selector.evaluator.reasoning", True))
    less = workshop.pipeline(without(config, ["core"]))
    for pipe in (small, thinks, less):
        assert (pipe.generator, pipe.segmenter) == (full.generator, full.segmenter)
        assert pipe.generator is full.generator
        assert pipe.segmenter is full.segmenter
    assert small.selector is not full.selector
    assert (small.selector.group, full.selector.group) == (1, 5)
    assert small.selector.evaluator is full.selector.evaluator
    assert thinks.selector.evaluator is not full.selector.evaluator
    assert less.selector is full.selector
    assert [id(search) for search in less.searches] == [id(full.searches[0]), id(full.searches[2])]


def test_what_pipelines_share_is_what_each_would_find_alone(shop):
    config, workshop = paint_config(shop), Workshop()
    pipes = [workshop.pipeline(own) for own in (config, without(config, ["core"]), without(config, ["prompt"]))]
    query = Query.of(IMAGE, "the red box", "s0")
    common = Common(query)
    for pipe in pipes:
        shared = common.candidates(pipe, common.scenes(pipe))
        alone = pipe.candidates(pipe.scenes(query))
        assert [one.source for one in shared] == [one.source for one in alone]
        assert all(one.mask.equal(other.mask) for one, other in zip(shared, alone, strict=True))
    assert pipes[0].segmenter.encoded == 1 + len(pipes)
    assert pipes[0].generator.asked == ["the red box"] * (1 + len(pipes))


# The command


@pytest.mark.usefixtures("undrawn")
def test_the_first_shuffle_of_every_variant_is_what_evaluate_finds(shop, monkeypatch):
    monkeypatch.setattr("rea2seg.evaluate.__main__.write_page", lambda *_: None)
    assert ablate(shop, "--limit", "3") == 0
    for name, options in {"pipeline": [], "without_core": ["--without", "core"]}.items():
        call(shop, "--limit", "3", *options, out="alone")
        for own, alone in zip(read_rows(shop / "out" / name / "shuffle_0"), read_rows(shop / "alone"), strict=True):
            assert own.ranking == alone.ranking
            assert own.overlaps == {
                key: alone.overlaps[key] for key in ("initial", "top1", "top3", "oracle", "instance")
            }


@pytest.mark.usefixtures("undrawn")
def test_shuffles_differ_in_the_groups_alone(shop, monkeypatch):
    groups: dict[str, list[list[int]]] = {}
    original = PaintEvaluator.score

    @wraps(original)  # configs are checked by signature
    def score(self, query, given):
        groups.setdefault(query.id, []).append([len(group) for group in given])
        return original(self, query, given)

    monkeypatch.setattr(PaintEvaluator, "score", score)
    assert ablate(shop, "--limit", "1", "--only", "one mask") == 0
    places = sorted(place.name for place in (shop / "out" / "pipeline").iterdir())
    assert places == ["shuffle_0", "shuffle_1", "shuffle_2"]
    full = [next(read_rows(shop / "out" / "pipeline" / place)) for place in places]
    assert full[0].ranking
    assert len({row.overlaps["oracle"] for row in full}) == 1
    assert not (shop / "out" / "without_core").exists()
    sizes = len(full[0].ranking)
    assert groups["s0"][:3] == [[5] * (sizes // 5) + [sizes % 5] * (sizes % 5 > 0)] * 3
    assert groups["s0"][3:] == [[5, 2]] * 3


def test_what_is_reported(shop, capsys):
    assert ablate(shop) == 0
    told = json.loads((shop / "out" / "ablations.json").read_text())
    names = [one["name"] for one in told["outcomes"]]
    assert names == ["pipeline", "without core", "one mask", "groups of one"]
    effects = {one["name"]: one["effects"][-1] for one in told["outcomes"]}
    assert {name: effect["label"] for name, effect in effects.items()} == dict.fromkeys(names, "average")
    assert [len(effects[name]["by_shuffle"]) for name in names] == [3, 1, 3, 1]
    assert effects["without core"]["candidates"] == effects["pipeline"]["candidates"] - 3
    assert effects["one mask"]["candidates"] == 7
    assert effects["pipeline"]["differences"] == {}
    assert told["sentences"][0] == "The pipeline itself is: groups of five."
    assert told["sentences"][-1].startswith(
        "Groups of five beat groups of one: no. Difference of groups of one: top1 +0.000"
    )
    printed, markdown = capsys.readouterr().out, (shop / "out" / "ablations.md").read_text()
    for line in told["sentences"]:
        assert line in printed
        assert f"- {line}" in markdown
    assert "| gIoU: average, n = 6 | candidates | top1 |" in markdown
    page = (shop / "out" / "ablations.html").read_text()
    assert "<svg" in page
    assert "groups of one" in page
    assert str(shop) not in page + markdown + (shop / "out" / "ablations.json").read_text()


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_goes_on_and_a_new_variant_runs_alone(shop, monkeypatch, capsys):
    few = VARIANTS[:1]
    assert ablate(shop, "--limit", "4", variants=few, out="whole") == 0
    original, done = PaintEvaluator.score, iter(range(9))

    @wraps(original)
    def tires(self, query, groups):
        if next(done, None) is None:
            raise KeyboardInterrupt
        return original(self, query, groups)

    monkeypatch.setattr(PaintEvaluator, "score", tires)
    assert ablate(shop, "--limit", "4", variants=few) == 130
    assert not (shop / "out" / "ablations.json").exists()
    scored = []

    @wraps(original)
    def counts(self, query, groups):
        scored.append(query.id)
        return original(self, query, groups)

    monkeypatch.setattr(PaintEvaluator, "score", counts)
    capsys.readouterr()
    assert ablate(shop, "--limit", "4", variants=few) == 0
    # Four rankings for each of four samples; the third sample was in the middle of its own.
    assert len(scored) == 4 * 4 - 9
    assert scored[0] == "s2"
    assert "9 rankings are kept" in capsys.readouterr().err
    for name in ("ablations.json", "ablations.md", "ablations.html"):
        assert (shop / "out" / name).read_bytes() == (shop / "whole" / name).read_bytes()
    scored.clear()
    more = [*few, {"name": "groups of two", "change": {"selector.group": 2}}]
    assert ablate(shop, "--limit", "4", variants=more) == 0
    assert scored == ["s0", "s1", "s2", "s3"]


@pytest.mark.usefixtures("undrawn")
def test_a_finished_variant_is_a_run_that_evaluate_compares(shop, capsys):
    assert ablate(shop, "--only", "without core", "--limit", "2") == 0
    first, second = (str(shop / "out" / name / "shuffle_0") for name in ("without_core", "pipeline"))
    capsys.readouterr()
    assert evaluate(["--compare", first, second]) == 0
    assert "gIoU: first run minus second run" in capsys.readouterr().out


def test_variants_are_chosen_by_name(shop, capsys):
    assert ablate(shop, "--only", "without cores") == 2
    assert "no variant is called 'without cores': choose from without core, one mask" in capsys.readouterr().err
    assert Table((Variant("a"), Variant("b"))).only(["b"]).variants[0].name == "b"


@dataclass(frozen=True)
class ByQuality:
    """A selector that shuffles nothing."""

    def __call__(self, scene: Scene, candidates: Sequence[Candidate]) -> Ranking:
        return quality(scene, candidates)


@pytest.mark.usefixtures("undrawn")
def test_a_selector_that_shuffles_nothing_goes_through_one_shuffle(shop):
    selector = {"class_path": "tests.evaluate.test_ablations.ByQuality"}
    (shop / "paint.yaml").write_text(yaml.safe_dump({**PAINT, "selector": selector}))
    assert ablate(shop, "--limit", "2", variants=VARIANTS[:1]) == 0
    assert [place.name for place in (shop / "out" / "pipeline").iterdir()] == ["shuffle_0"]


@pytest.mark.usefixtures("undrawn")
def test_a_pipeline_without_a_generator_has_variants_too(shop):
    whole = {"class_path": "tests.fakes.WholeImage"}
    paint = {**PAINT, "searches": [whole, *PAINT["searches"]]}
    del paint["generator"]
    (shop / "paint.yaml").write_text(yaml.safe_dump(paint))
    assert ablate(shop, "--limit", "2", "--only", "without core") == 0
    told = json.loads((shop / "out" / "ablations.json").read_text())
    assert [one["effects"][0]["candidates"] for one in told["outcomes"]] == [1, 1]
    assert "initial" not in told["outcomes"][0]["effects"][0]["giou"]


# The numbers


def outcome(top1: Sequence[Sequence[float]], oracle: float = 0.9, **about: Any) -> Outcome:
    """Of a variant whose top1 in each shuffle is that, of a pipeline with 0.5 and 0.7 in two shuffles."""
    rows = [[made_row(place, top1=0.5 + shuffle / 5, top3=0.8, oracle=0.9) for place in range(8)] for shuffle in (0, 1)]
    own = [[made_row(place, top1=value, top3=0.8, oracle=oracle) for place, value in enumerate(run)] for run in top1]
    return outcomes_of({Variant("pipeline"): rows, Variant("other", **about): own}, LISA)[1]


def test_differences_are_of_means_over_the_shuffles():
    effect = outcome([[0.5] * 8, [0.6] * 8]).headline
    assert effect.giou["top1"] == pytest.approx(0.55)
    assert effect.by_shuffle == pytest.approx((0.5, 0.6))
    assert effect.differences["top1"].mean == pytest.approx(-0.05)
    assert effect.differences["oracle"].mean == 0


@pytest.mark.parametrize(
    ("top1", "oracle", "by", "holds"),
    [
        ([0.59] * 8, 0.9, 0.0, True),
        ([0.59] * 8, 0.9, 0.02, False),
        ([0.59] * 8, 0.8, 0.02, True),
        ([0.61] * 8, 0.9, 0.0, False),
        ([0.2, 0.9] * 4, 0.9, 0.0, False),
        ([0.6] * 8, 0.9, 0.0, False),
    ],
)
def test_a_claim_holds_if_the_pipeline_is_better_beyond_chance_by_what_it_says(top1, oracle, by, holds):
    found_out = outcome([top1], oracle, claim="Both are needed", by=by)
    assert found_out.holds is holds
    assert sentence(found_out).startswith(f"Both are needed: {'yes' if holds else 'no'}. Difference of other: top1 ")


def test_without_a_claim_the_sentence_says_which_is_better():
    told = [sentence(outcome([top1], shows="a test")) for top1 in ([0.7] * 8, [0.5] * 8, [0.2, 0.9] * 4)]
    assert told[0] == "Other (a test): better, top1 +0.100 [+0.100, +0.100], oracle +0.000 [+0.000, +0.000]."
    assert told[1].startswith("Other (a test): worse, top1 -0.100")
    assert told[2].startswith("Other (a test): no difference in top1 that stands out from chance, ")


def test_tables_show_the_candidates_and_the_spread():
    made = [made_row(place, "ab"[place % 2], top1=0.5, top3=0.5, oracle=0.5) for place in range(4)]
    rows = [replace(row, ranking=(found(0, 0.5),) * (3 + 2 * place)) for place, row in enumerate(made)]
    outcomes = outcomes_of({Variant("pipeline"): [rows, rows], Variant("other"): [rows]}, LISA)
    headline, top1, oracle = tables_of(outcomes)
    assert headline.lines[0][:4] == ["pipeline", "6.0", "0.500", "2: 0.500 to 0.500"]
    assert headline.lines[1][-2:] == ["+0.000 [+0.000, +0.000]"] * 2
    assert top1.head == ["top1 difference", "a (2)", "b (2)", "average (4)"]
    assert [line[0] for line in oracle.lines] == ["other"]
    assert headline.markdown().splitlines()[1].count("---") == len(headline.head)
