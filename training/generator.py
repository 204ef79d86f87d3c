"""The generator: LISA's loss 1.0 CE + 2.0 BCE + 0.5 Dice on packed questions.

    python -m training.generator fit --config configs/train/generator.yaml

The vision tower, SAM's image encoder and SAM's own decoder are frozen; the language model, the connector and (as in
LISA; the paper freezes it) a mask decoder for the raw token are trained. Departures, mini only, because nothing here
comes trained: the language model learns from scratch instead of through LoRA; four losses point it at the target, a
contrastive one between the `[SEG]` predictor's state and the image tokens, one on its attention, one on the attention
of the words for what a question compares with or counts past, and one that asks the prompt token to be what SAM makes
of points on the target, which its decoder already understands; masks enter after `masks_from` steps; the three
multi-mask outputs learn the best of three.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import isqrt
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from safetensors.torch import save_file
from segment_anything.modeling import MaskDecoder, PromptEncoder
from torch import Tensor, nn

from rea2seg.checkpoints.sam import SamConfig, build_decoder, load_sam
from rea2seg.checkpoints.strict import fill
from rea2seg.generator.attention import enable, probe
from rea2seg.generator.llava import embed, image_features, last_hidden, load
from rea2seg.generator.tokens import SEG, Conversation
from rea2seg.masks import iou
from rea2seg.segmenters.sam import decode_prompts
from rea2seg.structures import Prompt
from rea2seg.synth.queries import CATEGORIES
from rea2seg.text import control_id
from training.batches import Stream
from training.losses import at_lattice, hits, lattice_iou, mask_bce, mask_dice, mass_inside, pointing
from training.mini import load_tokenizer
from training.optim import Schedule
from training.packing import BlockAttention
from training.pictures import CLIP, SHOWN, attended, captioned, compared, on_picture, restored
from training.questions import QuestionBatch, QuestionDrawer, image_columns
from training.scenes import Targets
from training.segmenter import ALL_MASKS, encode_canvas
from training.stage import Stage, run

DECODER = "mask_decoder.safetensors"


class Questions(Stream):
    """`count` questions about each of `scenes` fresh scenes; see `QuestionDrawer` for the rest."""

    def __init__(
        self,
        tokenizer: str,
        conversation: Conversation,
        answer: str = "[SEG]",
        side: int = 192,
        grid: int = 12,
        canvas: int = 192,
        cells: int = 64,
        count: int = 6,
        categories: Sequence[str] = CATEGORIES,
        scenes: int = 12,
        seed: int = 0,
        workers: int = 1,
        val_batches: int = 12,
    ) -> None:
        words = load_tokenizer(tokenizer)
        drawer = QuestionDrawer(words, conversation, answer, side, grid, canvas, cells, count, tuple(categories))
        train, val = (partial(drawer.batch, scenes=scenes, split=split) for split in ("train", "val"))
        super().__init__(train, val, seed, workers, val_batches)


@torch.no_grad()
def mean_point_embedding(encoder: PromptEncoder, targets: Targets) -> Float[Tensor, "b n c"]:
    """SAM's embedding of a foreground point, mean over the lattice points on each first mask."""
    cells = targets.lattice.shape[-1]
    steps = torch.arange(cells, device=targets.shift.device) + 0.5
    places = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1) + targets.shift[:, None, None]
    pixels = places.flatten(1, 2) * encoder.input_image_size[0] / cells
    codes = encoder.pe_layer.forward_with_coords(pixels, encoder.input_image_size)
    on = targets.masks()[:, :, 0].flatten(2).float()
    mean: Tensor = on @ codes / on.sum(-1, keepdim=True).clamp(min=1) + encoder.point_embeddings[1].weight
    return mean


def on_lattice(truth: Bool[Tensor, "*n h w"]) -> Bool[Tensor, "*n"]:
    """Which masks have a point: a thin or small part may lie between all of them, and then nothing is known of it."""
    return truth.flatten(-2).any(-1)


def misplaced(
    tokens: Float[Tensor, "n c"], points: Float[Tensor, "n c"], known: Bool[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Mean squared error where the points are known, as a share of the variance of what is wanted."""
    errors = (tokens.float() - points).square().mean(1) / points.var(0).mean()
    return (errors * known).sum() / known.sum().clamp(min=1)


class GeneratorStage(Stage):
    """Wires LISA to a frozen SAM. `weights` and `segmenter` are folders of the stages before.

    The decoder for the token goes on from that of `weights`, if this is a generator, or else from SAM's own.

    Masks are decoded from step `masks_from` on, for the first `masked` questions of each picture. `layers` are those
    whose attention the searches read, `mention_layers` those before them that look up a question's mention.
    """

    LOSS: ClassVar[Mapping[str, float]] = {
        "ce": 1.0,
        "bce": 2.0,
        "dice": 0.5,
        "quality": 0.5,
        "pointing": 0.5,
        "attention": 0.5,
        "mention": 0.5,
        "place": 0.5,
    }
    """LISA's three, then SAM's quality head, then the four of mini."""

    def __init__(
        self,
        weights: str,
        segmenter: str,
        export: str,
        layers: tuple[int, int] = (3, 4),
        mention_layers: tuple[int, int] = (1, 2),
        masks_from: int = 0,
        masked: int = 2,
        schedule: Schedule = Schedule(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(export, schedule, [weights, segmenter])
        self.layers, self.mention_layers, self.masks_from, self.masked = layers, mention_layers, masks_from, masked
        parts, self.sam = load(weights), load_sam(Path(segmenter)).requires_grad_(False)
        self.mllm, self.connector, self.parts = parts.mllm, parts.connector, parts
        self.decoder: MaskDecoder = build_decoder(SamConfig.read(Path(segmenter) / "config.json"))
        self.decoder.load_state_dict(self.sam.mask_decoder.state_dict())
        if (Path(weights) / DECODER).exists():
            fill(self.decoder, Path(weights) / DECODER)
        self.seg = control_id(parts.tokenizer, SEG)
        for frozen in (self.mllm.model.vision_tower, self.mllm.model.multi_modal_projector):
            frozen.requires_grad_(False)
        enable(self.mllm)

    def read(
        self, batch: QuestionBatch
    ) -> tuple[
        Float[Tensor, "b length d"], Int[Tensor, "b q"], Float[Tensor, "b q tokens"], Float[Tensor, "b q tokens"]
    ]:
        """Hidden states, where the `[SEG]` predictors are, and what these and the mentions attend to in the image."""
        packed, features = batch.packed, image_features(self.mllm, batch.pixels)
        predictors = torch.nonzero(packed.ids == self.seg)[:, 1].view(len(packed.ids), -1) - 1
        embedded, image = embed(self.mllm, packed.ids, features), image_columns(packed.ids)
        late, early = (range(a, b + 1) for a, b in (self.layers, self.mention_layers))
        with BlockAttention(packed), probe(late, predictors) as targets, probe(early, batch.mention_ends) as mentions:
            hidden = last_hidden(self.mllm, embedded, packed.mask(), packed.positions)
        return hidden, predictors, targets.mean()[..., image], mentions.mean()[..., image]

    def losses(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """The parts of the loss, and for the log how often the likeliest token lies inside the target."""
        hidden, predictors, attention, mentioned = self.read(batch)
        ids, inside, attention = batch.packed.ids, batch.inside.flatten(0, 1), attention.flatten(0, 1)
        replies = torch.cat([predictors, predictors + 1], dim=1)
        said = hidden.gather(1, replies[..., None].expand(-1, -1, hidden.shape[-1]))
        state = said[:, : predictors.shape[1]].flatten(0, 1)
        tokens = hidden[:, image_columns(ids)].repeat_interleave(predictors.shape[1], dim=0)
        logits, labels = self.mllm.lm_head(said), ids.gather(1, replies + 1)
        points = mean_point_embedding(self.sam.prompt_encoder, batch.targets).flatten(0, 1)
        truth = batch.targets.masks()
        parts = {
            "ce": nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()),
            "pointing": pointing(state.float(), tokens.float(), inside),
            "attention": mass_inside(attention, inside),
            "mention": mass_inside(mentioned.flatten(0, 1), batch.mentioned.flatten(0, 1)),
            "place": misplaced(self.connector(state), points, on_lattice(truth[:, :, 0]).flatten()),
            "accuracy/attention": hits(attention, inside),
        }
        if self.global_step >= self.masks_from:
            some = slice(self.masked)
            parts |= self.mask_losses(batch, said[:, : predictors.shape[1]][:, some], truth[:, some])
        return parts

    def decode(
        self, batch: QuestionBatch, state: Float[Tensor, "b k d"]
    ) -> tuple[Float[Tensor, "bk 4 h w"], Float[Tensor, "bk 4"]]:
        """All four masks of each state."""
        with torch.no_grad():
            encoded = encode_canvas(self.sam, batch.canvas, batch.resized)
        features = encoded.repeat_interleave(state.shape[1], dim=0)
        prompt = Prompt(token=self.connector(state.flatten(0, 1))[:, None])
        return decode_prompts(self.sam.prompt_encoder, self.decoder, features, prompt, ALL_MASKS)

    def mask_losses(
        self, batch: QuestionBatch, state: Float[Tensor, "b k d"], truth: Bool[Tensor, "b k 1 h w"]
    ) -> dict[str, Tensor]:
        """Of the single mask, and of the best of three (with a twentieth of all, so that none is left behind)."""
        lowres, quality = self.decode(batch, state)
        shift = batch.targets.shift.repeat_interleave(state.shape[1], dim=0)
        logits = at_lattice(lowres.float(), shift, truth.shape[-1])
        truth = truth.flatten(0, 1).expand(-1, 4, -1, -1)
        bce, dice, iou = mask_bce(logits, truth), mask_dice(logits, truth), lattice_iou(logits, truth)
        best = nn.functional.one_hot((2 * bce + 0.5 * dice)[:, 1:].argmin(1), 3)
        known = on_lattice(truth)
        share = known * torch.cat([torch.ones_like(bce[:, :1]), 0.5 * (0.95 * best + 0.05)], dim=1)
        return {
            "bce": (share * bce).sum(1).mean(),
            "dice": (share * dice).sum(1).mean(),
            "quality": (known * (quality.float() - iou).square()).mean(),
            "iou/single": iou[:, 0].mean(),
            "iou/best_of_three": iou[:, 1:].amax(1).mean(),
        }

    def pictures(self, batch: QuestionBatch) -> list[Image.Image]:
        """Of the first pictures the first question: what its token attends to, and the single mask."""
        hidden, predictors, attention, _ = self.read(batch)
        lowres, _ = self.decode(batch, hidden[torch.arange(len(hidden)), predictors[:, 0]][:, None])
        grid, pictures = isqrt(attention.shape[-1]), []
        for row, truth in enumerate(batch.targets.masks()[:SHOWN, 0, 0]):
            image = restored(batch.pixels[row], *CLIP)
            looks = attended(image, attention[row, 0].view(grid, grid), batch.inside[row, 0].view(grid, grid))
            canvas, resized, shift = batch.canvas[row], batch.resized[row], batch.targets.shift[row]
            image, right, guess = on_picture(canvas, resized, truth, shift, lowres[row, 0])
            block = batch.packed.ids[row, batch.packed.owner[row] == 0]
            asked = self.parts.tokenizer.decode(block, skip_special_tokens=True).strip()
            pictures.append(captioned(f"{asked}   IoU {iou(guess, right):.2f}", looks, compared(image, right, guess)))
        return pictures

    def export(self, folder: Path) -> None:
        """Write the generator, and beside it the mask decoder for its token."""
        self.parts.save(folder)
        state = {name: value.contiguous() for name, value in self.decoder.state_dict().items()}
        save_file(state, folder / DECODER)


if __name__ == "__main__":
    run(GeneratorStage, Questions)
