import json
from dataclasses import replace

import pytest

from rea2seg.evaluate.judging import judge
from rea2seg.evaluate.pictures import pictures_of
from rea2seg.evaluate.results import Results
from rea2seg.evaluate.rows import KEYS, Row
from rea2seg.evaluate.tables import closing_lines
from rea2seg.masks import decode_rle
from rea2seg.metrics import Overlap
from rea2seg.pipeline import Rea2Seg
from rea2seg.ranking import ByEvaluator
from rea2seg.rivals import quality
from rea2seg.structures import Candidate, Query, Score
from tests.evaluate.paint import COLOURS, IMAGE, LISA, pipeline, sample
from tests.fakes import PaintEvaluator, PaintSegmenter, painted


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
    assert (row.groups, row.fallback, row.warnings) == (-(-len(row.ranking) // 5), 0, ())


def test_the_blind_evaluator_judges_the_same_groups_with_another_question():
    pipe = pipeline()
    judge(pipe, sample(0), "the blue box", LISA)
    assert pipe.selector.evaluator.asked == ["the red box", "the blue box"]


def test_where_nothing_else_is_asked_nobody_is_blind():
    row = judge(pipeline(), sample(0), None, LISA)
    assert "blind" not in row.overlaps
    assert "blind" not in row.orders
    assert {"top1", "random"} <= row.overlaps.keys()


def test_best_of_three_is_chosen_among_the_first_three_alone():
    class Worst(PaintEvaluator):
        def score(self, query, groups):
            return [[replace(score, iou=1 - score.iou) for score in group] for group in super().score(query, groups)]

    pipe, one = replace(pipeline(), selector=ByEvaluator(Worst())), sample(0)
    row = judge(pipe, one, "the blue box", LISA)
    ranking = pipe.answer(pipe.scenes(Query(one.image, one.query, one.id)))
    first = [float((c.mask & one.truth).sum() / (c.mask | one.truth).sum()) for c in ranking.top(3)]
    ious = {key: overlap.intersection / overlap.union for key, overlap in row.overlaps.items()}
    assert ious["top1"] == pytest.approx(first[0])
    assert ious["top3"] == pytest.approx(max(first))
    assert ious["oracle"] == 1.0 > ious["top3"]


def test_groups_without_scores_and_samples_without_candidates_are_counted():
    mumbling = judge(pipeline(), sample(0, "mumble the {} box"), "the blue box", LISA)
    assert mumbling.fallback == mumbling.groups > 0
    nothing = judge(pipeline(lambda *_: []), sample(0), "the blue box", LISA)
    assert (nothing.ranking, nothing.groups, nothing.fallback) == ((), 0, 0)
    assert nothing.overlaps["top1"] == nothing.overlaps["blind"] == Overlap(0, int(painted(IMAGE, "red").sum()))


def test_where_nothing_answers_the_question_only_an_empty_answer_is_right():
    row = judge(pipeline(), sample(0, truth=None), "the blue box", LISA)
    assert row.overlaps["top1"].intersection == 0 < row.overlaps["top1"].union
    assert row.target_area == 0
    assert not row.has_target
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


def test_every_candidate_is_kept_in_the_order_of_the_ranking_with_its_worth():
    one = sample(0)
    row = judge(pipeline(), one, "the blue box", LISA)
    ranking = pipeline().answer(pipeline().scenes(Query(one.image, one.query, one.id)))
    assert [found.index for found in row.ranking] == list(ranking.indices)
    for found, (candidate, score) in zip(row.ranking, ranking, strict=True):
        shared, either = (candidate.mask & one.truth).sum(), (candidate.mask | one.truth).sum()
        assert found.overlap == Overlap(int(shared), int(either))
        assert (found.source, found.quality) == (candidate.source, pytest.approx(candidate.quality))
        assert found.score == pytest.approx(score.iou, abs=1e-6)


def test_rivals_orders_hold_every_candidate_and_begin_with_the_choice_that_is_measured():
    row = judge(pipeline(), sample(0), "the blue box", LISA)
    assert set(row.orders) == {"quality", "random", "blind", "agreement", "attention"}
    by_index = {found.index: found.overlap for found in row.ranking}
    for name, order in row.orders.items():
        assert sorted(order) == sorted(by_index)
        assert row.overlaps[name] == by_index[order[0]]


def test_what_has_no_number_is_kept_as_none():
    def given(scene: object, segmenter: object) -> list[Candidate]:  # noqa: ARG001
        return [Candidate(painted(IMAGE, "red"))]

    (found,) = judge(pipeline(given), sample(0, "mumble the {} box"), "x", LISA).ranking
    assert (found.score, found.quality) == (None, None)


def test_the_masks_of_the_answer_and_of_what_it_is_compared_with_are_kept():
    one = sample(0)
    row = judge(pipeline(), one, "the blue box", LISA)
    assert set(row.masks) == {"initial", "top1", "oracle"}
    for name, rle in row.masks.items():
        mask = decode_rle(rle)
        assert row.overlaps[name] == Overlap(int((mask & one.truth).sum()), int((mask | one.truth).sum()))
    assert set(judge(pipeline(lambda *_: []), one, "x", LISA).masks) == {"initial"}


def test_of_equally_good_candidates_the_oracle_takes_the_best_ranked():
    row = judge(pipeline(), sample(0), "the blue box", LISA)
    assert sum(found.overlap == row.overlaps["oracle"] for found in row.ranking) > 1
    assert row.masks["oracle"] == row.masks["top1"]


def test_a_group_failed_if_one_of_its_scores_is_missing():
    """Two unusable scores in two groups are two groups that failed, not one."""

    class Unsure(PaintEvaluator):
        def score(self, query, groups):
            judged = super().score(query, groups)
            return [[Score(float("nan")), *scores[1:]] for scores in judged]

    pipe = replace(pipeline(), selector=ByEvaluator(Unsure()))
    row = judge(pipe, sample(0), "the blue box", LISA)
    assert row.fallback == row.groups > 1


def test_whoever_refuses_a_question_answers_with_an_empty_mask():
    """The paint shop's estimates are exact: nothing is as good as what has no pixel of a colour that is missing."""
    refusing = replace(pipeline(), selector=ByEvaluator(PaintEvaluator(), no_target_below=0.5))
    row = judge(refusing, sample(0, "the pink box"), "the blue box", LISA)
    assert row.no_target
    assert row.overlaps["top1"] == Overlap(0, int(painted(IMAGE, "red").sum()))
    assert not decode_rle(row.masks["top1"]).any()
    assert row.overlaps["oracle"] != row.overlaps["top1"]
    assert row.overlaps["blind"] == row.overlaps["top1"]  # it refuses too, and is not measured by a mask
    shown = pictures_of(sample(0), row, LISA)
    assert ["answered with no target" in picture.note for picture in shown] == [False, False, True, False]
    absent = judge(refusing, replace(sample(0, "the pink box"), truth=None), "the blue box", LISA)
    assert absent.overlaps["top1"] == Overlap(0, 0)
    answered = judge(refusing, sample(0), "the blue box", LISA)
    assert not answered.no_target
    assert Row.from_json(row.to_json(LISA)) == row
    results = Results.of([row, absent, answered], LISA)
    assert (results.no_target, results.refused, results.falsely_refused) == (1, 1, 1)
    assert "answered with no target: 1 of the 1 samples that have none, 1 that have one" in closing_lines(results)
