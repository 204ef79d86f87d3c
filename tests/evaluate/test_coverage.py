from rea2seg.evaluate.coverage import LONGEST, Recall, best_of_first, recall_by_source
from tests.evaluate.paint import LISA, call, found, metrics_of, ranked_row, row_of


def test_the_curve_climbs_to_the_best_and_stays_there():
    row = ranked_row(0, found(2, 0.5), found(0, 0.25), found(1, 0.75), orders={"quality": (0, 1, 2)})
    curves = best_of_first([row], LISA)
    assert [one.mean for one in curves["ranking"]] == [0.5, 0.5] + [0.75] * 13
    assert [one.mean for one in curves["quality"]] == [0.25] + [0.75] * 14


def test_the_curve_of_the_average_counts_categories_alike_and_leaves_attributes_out():
    rows = [ranked_row(place, found(0, 1.0), category="a") for place in range(3)]
    rows += [ranked_row(3, category="b"), ranked_row(4, found(0, 1.0), category="attribute")]
    (curve,) = best_of_first(rows, LISA).values()
    assert [one.mean for one in curve] == [0.5] * LONGEST  # nothing was found for b


def test_orders_that_some_samples_lack_have_no_curve():
    rows = [ranked_row(0, found(0, 1.0), orders={"blind": (0,), "quality": (0,)})]
    rows += [ranked_row(1, found(0, 1.0), orders={"quality": (0,)})]
    assert list(best_of_first(rows, LISA)) == ["ranking", "quality"]


def test_the_curve_passes_through_top1_and_top3(shop, unreported):  # noqa: ARG001
    call(shop)
    told = metrics_of(shop)
    average, curves = row_of(told, "average")["gIoU"], told["best_of_first"]
    assert (curves["ranking"][0], curves["ranking"][2]) == (average["top1"], average["top3"])
    assert [curves[name][0] for name in ("quality", "blind")] == [average["quality"], average["blind"]]


def test_recall_by_source_counts_what_each_search_reaches():
    rows = [
        ranked_row(0, found(0, 0.8, source="prompt"), found(1, 0.5, source="attention")),
        ranked_row(1, found(0, 0.7, source="attention"), found(1, 0.7, source="prompt"), found(2, 0.5)),
        ranked_row(2, found(0, 0.0, source="core")),
        ranked_row(3),
    ]
    prompt, core, attention, everything = recall_by_source(rows, LISA)
    assert prompt == Recall("prompt", 0.5, 0.25, 0.375, 0.75, 0.25)
    assert core == Recall("core", 0.0, 0.0, 0.0, 0.25, 0.0)
    assert attention == Recall("attention", 0.5, 0.0, 0.3, 0.5, 0.0)
    assert everything == Recall("all", 0.5, 0.25, 0.375, 1.5, None)


def test_samples_without_a_target_are_left_out_of_the_recall_alone():
    rows = [ranked_row(0, found(0, 1.0)), ranked_row(1, found(0, 0.0), target_area=0)]
    assert recall_by_source(rows, LISA)[-1].best == 1.0
    assert best_of_first(rows, LISA)["ranking"][0].mean == 0.5
    assert recall_by_source(rows[1:], LISA) == []
