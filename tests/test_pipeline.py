import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

import rea2seg
from rea2seg import Rea2Seg
from rea2seg.errors import ConfigError, InputError
from rea2seg.generator.candidates import AttentionSearch, CoreSearch, PromptSearch
from rea2seg.pipeline import each_target, warnings_about
from rea2seg.ranking import NO_CANDIDATES, ByEvaluator
from rea2seg.rivals import quality
from rea2seg.structures import Candidate, Query, Scene
from tests.fakes import PaintEvaluator, PaintGenerator, PaintSegmenter, canvas_of_paint, painted

IMAGE = canvas_of_paint()
PIXELS = IMAGE.permute(1, 2, 0).numpy()


@pytest.fixture
def pipe() -> Rea2Seg:
    searches = [PromptSearch(), CoreSearch(), AttentionSearch()]
    return Rea2Seg(PaintSegmenter(), searches, ByEvaluator(PaintEvaluator()), PaintGenerator())


def test_a_question_about_an_image_becomes_a_ranking_led_by_the_answer(pipe):
    ranking = pipe(PIXELS, "the red box")
    assert ranking.best.mask.equal(painted(IMAGE, "red"))
    assert ranking.warnings == ()
    assert [score.iou for score in ranking.scores] == sorted((score.iou for score in ranking.scores), reverse=True)
    assert len(ranking.top(3)) == 3


def test_candidates_come_from_every_search_in_their_order(pipe):
    (scene,) = pipe.scenes(Query(IMAGE, "the red box"))
    sources = [candidate.source for candidate in pipe.candidates([scene])]
    assert sources == sorted(sources, key=["prompt", "core", "attention"].index)
    assert (sources.count("prompt"), sources.count("core")) == (3, 3)
    assert 1 <= sources.count("attention") <= 9


@pytest.mark.parametrize("left_out", [PromptSearch, CoreSearch, AttentionSearch])
def test_leaving_a_search_out_leaves_the_candidates_of_the_others_as_they_were(pipe, left_out):
    (scene,) = pipe.scenes(Query(IMAGE, "the green box"))
    source = {PromptSearch: "prompt", CoreSearch: "core", AttentionSearch: "attention"}[left_out]
    shorter = replace(pipe, searches=[search for search in pipe.searches if not isinstance(search, left_out)])
    expected = [candidate for candidate in pipe.candidates([scene]) if candidate.source != source]
    found = shorter.candidates([scene])
    assert len(found) == len(expected)
    assert all(a.mask.equal(b.mask) and a.source == b.source for a, b in zip(found, expected, strict=True))


def test_the_initial_mask_is_the_single_mask_of_the_prompt_and_no_candidate(pipe):
    (scene,) = pipe.scenes(Query(IMAGE, "the blue box"))
    initial = scene.initial.upsample()[0] > 0
    assert initial[painted(IMAGE, "blue")].all()
    assert not any(candidate.mask.equal(initial) for candidate in pipe.candidates([scene]))


def test_paths_images_and_arrays_are_the_same_to_it(pipe, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "paint.png")
    sources = [IMAGE, PIXELS, Image.fromarray(PIXELS), tmp_path / "paint.png", str(tmp_path / "paint.png")]
    rankings = [pipe(source, "the red box") for source in sources]
    assert all(ranking.indices == rankings[0].indices for ranking in rankings)
    assert all(ranking.best.mask.equal(rankings[0].best.mask) for ranking in rankings)


def test_many_questions_share_one_encoding_and_get_the_answers_they_get_alone(pipe):
    questions = ["the red box", "the blue box", "the green box"]
    together = pipe.many(PIXELS, questions)
    assert pipe.segmenter.encoded == 1
    for question, ranking in zip(questions, together, strict=True):
        alone = pipe(PIXELS, question)
        assert ranking.indices == alone.indices
        assert [score.iou for score in ranking.scores] == [score.iou for score in alone.scores]
        assert ranking.best.mask.equal(painted(IMAGE, question))
    assert pipe.many(PIXELS, []) == []


def test_one_question_for_many_is_refused(pipe):
    with pytest.raises(InputError, match="a list of texts"):
        pipe.many(PIXELS, "the red box")


def test_what_else_keeps_a_scene_from_having_seeds_is_told(pipe):
    (scene,) = pipe.scenes(Query(IMAGE, "the red box"))
    assert warnings_about(scene) == []
    (warning,) = warnings_about(replace(scene, initial=None))
    assert "no initial mask" in warning


def test_many_questions_are_grounded_in_one_call(pipe):
    calls = []

    class Counts(PaintGenerator):
        def ground(self, queries):
            calls.append(len(queries))
            return super().ground(queries)

    replace(pipe, generator=Counts()).many(PIXELS, ["the red box", "the blue box", "the green box"])
    assert calls == [3]


def test_the_question_is_cleaned_before_anybody_reads_it(pipe):
    pipe(PIXELS, "  the red\nbox\x00 ")
    assert pipe.generator.asked == pipe.selector.evaluator.asked == ["the red box"]
    with pytest.raises(InputError, match="empty"):
        pipe(PIXELS, " \n")
    query = Query.of(PIXELS, "  the red\nbox\x00 ", "7")
    assert (query.image.equal(IMAGE), query.text, query.id) == (True, "the red box", "7")


def test_a_bad_image_stops_it_before_any_model_runs(pipe, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        pipe(tmp_path / "none.png", "the red box")
    assert pipe.segmenter.encoded == 0


def test_not_a_number_in_the_attention_leaves_the_prompt_and_a_warning(pipe):
    ranking = pipe(PIXELS, "the red box, nan")
    assert {candidate.source for candidate in ranking.candidates} == {"prompt"}
    assert ranking.best.mask.equal(painted(IMAGE, "red"))
    assert len(ranking.warnings) == 1
    assert "not finite" in ranking.warnings[0]


def test_an_mllm_that_looks_past_the_image_leaves_the_prompt_and_a_warning(pipe):
    @dataclass
    class LooksAway(PaintGenerator):
        def ground(self, queries):
            return [replace(found, cells=replace(found.cells, left=1e4)) for found in super().ground(queries)]

    ranking = replace(pipe, generator=LooksAway())(PIXELS, "the red box")
    assert {candidate.source for candidate in ranking.candidates} == {"prompt"}
    assert "no seeds" in ranking.warnings[0]


def test_no_candidates_is_an_empty_ranking_with_a_warning(pipe):
    ranking = replace(pipe, searches=[])(PIXELS, "the red box")
    assert (len(ranking), ranking.best, ranking.warnings) == (0, None, (NO_CANDIDATES,))
    assert pipe.selector.evaluator.asked == []


def test_what_the_generator_remarks_is_passed_on_once(pipe):
    @dataclass
    class Remarks(PaintGenerator):
        def ground(self, queries):
            return [replace(found, flags=("no [SEG]",)) for found in super().ground(queries)]

    ranking = replace(pipe, generator=Remarks(targets=2))(PIXELS, "the red box")
    assert ranking.warnings == ("no [SEG]",)


def test_a_reply_with_two_targets_gives_two_scenes_and_one_ranking(pipe):
    twice = replace(pipe, generator=PaintGenerator(targets=2))
    query = Query(IMAGE, "the red box")
    scenes = twice.scenes(query)
    assert [len(scene.grounding.token) for scene in scenes] == [1, 1]
    assert len(twice.answer(scenes)) == 2 * len(pipe.answer(pipe.scenes(query)))
    grounding = PaintGenerator(targets=3).ground([query])[0]
    assert all(part.attention.equal(grounding.attention[:1]) for part in each_target(grounding))


def test_a_pipeline_without_a_generator_searches_what_its_searches_know(pipe):
    def everything(scene: Scene, segmenter: object) -> list[Candidate]:  # noqa: ARG001
        assert scene.grounding is None
        return [Candidate(torch.ones(scene.query.size, dtype=torch.bool), "given", 0.5)]

    ranking = Rea2Seg(pipe.segmenter, [everything], quality)(PIXELS, "the red box")
    assert (len(ranking), ranking.best.source, ranking.warnings) == (1, "given", ())


def test_images_of_one_row_pass_through(pipe):
    line = np.array([[(213, 0, 0)] * 30 + [(255, 255, 255)] * 34], dtype=np.uint8)
    ranking = pipe(line, "the red box")
    assert ranking.best.mask.shape == (1, 64)


def test_from_config_says_what_is_wrong_before_it_loads():
    with pytest.raises(ConfigError, match="no config is called 'nobody'"):
        Rea2Seg.from_config("nobody")


def test_the_public_names_are_there_and_importing_the_package_is_quick():
    assert {name: getattr(rea2seg, name) for name in rea2seg.__all__}["Rea2Seg"] is Rea2Seg
    with pytest.raises(AttributeError, match="no attribute 'Rea3Seg'"):
        _ = rea2seg.Rea3Seg
    assert issubclass(InputError, rea2seg.Rea2SegError)
    check = "import rea2seg, sys; rea2seg.rank, rea2seg.Query; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
