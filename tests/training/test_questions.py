"""What the generator is trained on is what it meets in `Lisa`: same tokens, same rows, same states, same places."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rea2seg.checkpoints.sam import build_sam, save_sam
from rea2seg.generator.attention import enable
from rea2seg.generator.lisa import Lisa
from rea2seg.generator.llava import embed, image_features
from rea2seg.generator.tokens import SEG, TokenLayout, control_id, expand
from rea2seg.segmenters.sam import Sam
from rea2seg.structures import CellMap, Prompt, Query
from rea2seg.synth.queries import CATEGORIES, questions
from rea2seg.text import clean_question
from tests.training.conftest import CLIP, CONVERSATION, LANGUAGE, SAM, roughen
from training.generator import GeneratorStage, mean_point_embedding, misplaced, on_lattice
from training.mini import small_llava
from training.questions import QuestionDrawer, draw_questions, image_columns, target_codes
from training.scenes import CODES, Targets, code_lattice, codes_of, sample_scene, to_tensor

COUNT, GRID = 3, CLIP.side // CLIP.patch


@pytest.fixture(scope="module")
def drawer(tokenizer):
    return QuestionDrawer(tokenizer, CONVERSATION, "[SEG]", CLIP.side, GRID, SAM.image_size, 16, COUNT)


@pytest.fixture(scope="module")
def drawn():
    """Two scenes with their questions, as `QuestionDrawer.batch` draws them with the same generator."""
    rng = np.random.default_rng(5)
    return [draw_questions(rng, COUNT, CATEGORIES, "train") for _ in range(2)]


@pytest.fixture(scope="module")
def batch(drawer):
    return drawer.batch(np.random.default_rng(5), 2, "train")


@pytest.fixture(scope="module")
def stage(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)  # SAM's positional encoding is random, and no parameter.
    parts = small_llava(CLIP, LANGUAGE, tokenizer, SAM.channels)
    roughen(parts.mllm)
    roughen(parts.connector, 1)
    parts.save(folder / "vision")
    save_sam(roughen(build_sam(SAM), 2), SAM, folder / "segmenter")
    stage = GeneratorStage(str(folder / "vision"), str(folder / "segmenter"), str(folder / "export"), (0, 1), (0, 0))
    roughen(stage.decoder, 3)
    return stage


@pytest.fixture(scope="module")
def lisa(stage):
    settings = {"conversation": CONVERSATION, "layers": (0, 1), "answer": "[SEG]", "geometry": "pad"}
    return Lisa.wrap(stage.mllm, stage.connector, stage.parts.tokenizer, **settings)


def test_every_block_completes_the_prefix_to_the_ids_of_inference(drawn, batch, lisa):
    for row, scene in enumerate(drawn):
        for block, question in enumerate(scene.asked):
            whole = expand(lisa._teach(clean_question(question.text)), GRID**2)
            owner = batch.packed.owner[row]
            mine = (owner == -1) | (owner == block)
            assert batch.packed.ids[row][mine].tolist() == whole
            assert batch.packed.positions[row][mine].tolist() == list(range(len(whole)))


def test_predictors_and_image_columns_are_those_of_the_token_layout(batch, stage, drawn, lisa):
    _, predictors, *_ = stage.read(batch)
    for row, scene in enumerate(drawn):
        for block, question in enumerate(scene.asked):
            ids = expand(lisa._teach(question.text), GRID**2)
            layout = TokenLayout.of(ids, (GRID, GRID), lisa.seg)
            assert image_columns(batch.packed.ids) == layout.image
            at = int(predictors[row, block])
            assert batch.packed.owner[row, at] == block
            assert (int(batch.packed.positions[row, at]),) == layout.predictors
            assert batch.packed.ids[row, at + 1] == control_id(stage.parts.tokenizer, SEG)


@torch.no_grad()
def test_a_packed_batch_reads_the_states_and_rows_that_lisa_reads(batch, stage, drawn, lisa):
    hidden, predictors, attention, _ = stage.read(batch)
    assert attention.std(-1).mean() > 0.003  # Sharp enough that a shifted row or column would show.
    for row, scene in enumerate(drawn):
        image = to_tensor(scene.rendering.image)
        groundings = lisa.ground([Query(image, question.text) for question in scene.asked])
        for block, grounding in enumerate(groundings):
            token = stage.connector(hidden[row, predictors[row, block]])
            assert_close(token, grounding.token[0, 0], atol=1e-4, rtol=1e-4)
            assert_close(attention[row, block], grounding.attention[0].flatten(), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_mentions_are_read_where_they_end_in_their_own_layers(batch, stage):
    *_, mentioned = stage.read(batch)
    embedded = embed(stage.mllm, batch.packed.ids, image_features(stage.mllm, batch.pixels))
    mask = torch.zeros(batch.packed.mask().shape).masked_fill(~batch.packed.mask(), -1e9)
    stage.mllm.set_attn_implementation({"text_config": "eager"})
    whole = stage.mllm.get_decoder()(
        inputs_embeds=embedded, attention_mask=mask, position_ids=batch.packed.positions, output_attentions=True
    ).attentions[0]
    enable(stage.mllm)
    rows = torch.arange(len(whole))[:, None]
    expected = whole.mean(1)[rows, batch.mention_ends][..., image_columns(batch.packed.ids)]
    assert mentioned.std(-1).mean() > 0.003
    assert_close(mentioned, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_masks_of_training_are_those_that_the_segmenter_decodes(batch, stage, drawn, lisa):
    """With the library's own masks in place of the truth, the single mask of training is right nearly everywhere."""
    sam, cells = Sam.wrap(stage.sam, stage.decoder), 64
    hidden, predictors, *_ = stage.read(batch)
    truth = torch.zeros(len(drawn), COUNT, 1, cells, cells, dtype=torch.bool)
    for row, scene in enumerate(drawn):
        image = to_tensor(scene.rendering.image)
        embedding, shift = sam.encode([image])[0], batch.targets.shift[row].numpy()
        span = tuple(length * cells / SAM.image_size for length in embedding.canvas.resized)
        for block, question in enumerate(scene.asked):
            token = lisa.ground([Query(image, question.text)])[0].token
            mask = sam.decode(embedding, Prompt(token=token), multimask=False).upsample()[0] > 0
            lattice = code_lattice(mask.numpy().astype(np.uint8), cells, shift, span)
            truth[row, block, 0] = torch.from_numpy(lattice).bool()
    assert 0.05 < truth.float().mean() < 0.95

    def single_iou(truth):
        states = hidden[torch.arange(len(drawn))[:, None], predictors]
        return stage.mask_losses(batch, states, truth)["iou/single"]

    # Not 1: what is beside the picture counts as background here.
    exact = single_iou(truth)
    assert exact > 0.6
    assert single_iou(truth.roll(1, -1)) < exact - 0.2
    assert single_iou(truth.roll(1, -2)) < exact - 0.2


def test_inside_are_the_tokens_whose_pixels_show_the_target(tokenizer, drawn):
    drawer = QuestionDrawer(tokenizer, CONVERSATION, "[SEG]", 192, 12, SAM.image_size, 16, COUNT)
    for scene in drawn:
        row = drawer.row(np.random.default_rng(0), scene)
        boxes = CellMap.padded(scene.rendering.instance_ids.shape, 12).boxes().round().int().clamp(min=0).tolist()
        for question, inside in zip(scene.asked, row["inside"], strict=True):
            truth = question.truth(scene.rendering)
            covered = np.array([truth[top:bottom, left:right].sum() for left, top, right, bottom in boxes])
            assert covered[inside].min() > 0.35 * covered.max()
            assert covered[~inside].max() < 0.65 * covered.max()


def test_mentions_end_with_the_last_word_for_what_is_looked_up(tokenizer, drawer):
    compared, selected, counted = 0, 0, 0
    for seed in range(24):
        batch = drawer.batch(np.random.default_rng(seed), 2, "train")
        scene = draw_questions(np.random.default_rng(seed), COUNT, CATEGORIES, "train")
        for block, (question, mention) in enumerate(zip(scene.asked, scene.mentions, strict=True)):
            at, row = int(batch.mention_ends[0, block]), batch.packed.owner[0]
            own = torch.nonzero(row == block)[:, 0]
            said = tokenizer.decode(batch.packed.ids[0, own[0] : at + 1])
            assert own[0] <= at <= own[-1]
            # What is thin and half hidden may lie between the few samples of a cell.
            assert bool(batch.mentioned[0, block].any()) <= bool(mention.things)
            if not batch.mentioned[0, block].any():
                continue
            assert said == mention.words
            anchor = getattr(question.program, "anchor", None)
            if anchor is not None:
                assert (mention.things, said.endswith(anchor.name)) == ((anchor.index,), True)
                compared += 1
            elif question.selected_from:
                assert said.endswith(question.selected_from)
                assert {*question.target} < {*mention.things}
                selected += 1
            else:
                assert not {*mention.things} & {*question.target}
                assert question.text.startswith(said)
                assert len(question.text) - len(said) <= 1
                counted += 1
            shown = np.isin(scene.rendering.instance_ids, [index + 1 for index in mention.things])
            boxes = CellMap.padded(shown.shape, GRID).boxes().round().int().clamp(min=0).tolist()
            covered = np.array([shown[top:bottom, left:right].sum() for left, top, right, bottom in boxes])
            # Half of the most, by a few points of each cell; here every pixel counts, so that there is some room.
            assert covered[batch.mentioned[0, block]].min() > 0.2 * covered.max()
    assert min(compared, selected, counted) >= 3


def test_the_points_on_a_target_are_sams_own_points(stage):
    """One lattice point on the target is exactly a foreground point there; several are their mean."""
    encoder, cells = stage.sam.prompt_encoder, 16
    lattice = torch.zeros(1, cells, cells, dtype=torch.uint8)
    lattice[0, 3, 5], lattice[0, 9, 12] = 1, 2
    table = torch.zeros(1, 2, 1, CODES, dtype=torch.bool)
    table[0, 0, 0, 1], table[0, 1, 0, 1:3] = True, True
    shift = torch.tensor([[0.25, -0.4]])
    found = mean_point_embedding(encoder, Targets(lattice, shift, table))[0]
    at = (torch.tensor([[5.0, 3.0], [12.0, 9.0]]) + 0.5 + shift) * SAM.image_size / cells
    # Inside the encoder half a pixel is added to points, which are pixel indices there.
    sparse, _ = encoder(points=(at[:, None] - 0.5, torch.ones(2, 1)), boxes=None, masks=None)
    assert_close(found[0], sparse[0, 0])
    assert_close(found[1], sparse[:, 0].mean(0))
    both = torch.tensor([True, True])
    assert misplaced(found, found, both) == 0
    assert misplaced(found.mean(0).expand(2, -1), found, both) == pytest.approx(0.5)
    assert misplaced(found[[0, 0]], found, torch.tensor([True, False])) == 0


def test_a_target_between_all_lattice_points_teaches_nothing(stage, batch):
    """Of a target that no point meets it is not known where it lies: its loss is not that of an empty mask."""
    torch.manual_seed(0)
    truth, state = batch.targets.masks(), torch.randn(2, COUNT, LANGUAGE.width)
    assert on_lattice(truth).all()
    unseen = truth.clone()
    unseen[1, 2] = False
    assert not on_lattice(unseen)[1, 2]
    kept = stage.mask_losses(batch, state, unseen)
    other = state.clone()
    other[1, 2] += 1
    assert not torch.equal(stage.mask_losses(batch, other, truth)["bce"], stage.mask_losses(batch, state, truth)["bce"])
    for name in ("bce", "dice", "quality"):
        assert_close(stage.mask_losses(batch, other, unseen)[name], kept[name])


def test_the_codes_of_an_answer_are_its_mask():
    checked = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        world, rendering = sample_scene(rng)
        for question in questions(rng, world, rendering, 6):
            checked.add(question.granularity)
            assert (target_codes(question)[codes_of(rendering)] == question.truth(rendering)).all()
    assert checked == {"part", "object", "group"}
