"""Stages 4 and 5: the evaluator learns to see, to explain, and to score masks.

    python -m training.evaluator fit --config configs/train/evaluator_stage1.yaml
    python -m training.evaluator fit --config configs/train/evaluator_stage2.yaml

Stage 1: scores without reasoning, what lies under a mask, and questions answered in words. Stage 2: relational
questions with and without reasoning, as a LoRA adapter on the language layers (the paper trains both stages with LoRA
of rank 128 on InternVL3-8B). Departures, mini only: stage 1 trains all of the language model, because nothing here
comes trained, from that of the generator on, which already knows the questions; `Regions` adds four losses that lead it
from the asked region to the masks; the digits of the scores have a loss of their own, so that they are not drowned by
the words.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from rea2seg.evaluators.prompts import EvaluatorTemplate
from rea2seg.evaluators.weights import load_internvl
from rea2seg.generator.attention import enable, probe
from rea2seg.generator.llava import load
from training.batches import Stream
from training.judgements import IGNORED, JudgementBatch, JudgementDrawer, Source, Task
from training.losses import answer_loss, mass_inside
from training.mini import load_tokenizer, save_internvl
from training.packing import BlockAttention
from training.regions import FINE, tokens_inside
from training.stage import Stage, run
from training.take_over import take_over_language

LANGUAGE_LAYERS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


class Judgements(Stream):
    """Tasks about fresh scenes; `counts` says how many questions of each task share a picture."""

    def __init__(
        self,
        tokenizer: str,
        template: EvaluatorTemplate,
        tasks: Mapping[Task, float],
        counts: Mapping[Task, int],
        source: Source,
        image_side: int = 192,
        mask_side: int = 64,
        cell: int = 16,
        scenes: int = 8,
        seed: int = 0,
        workers: int = 1,
        val_batches: int = 16,
    ) -> None:
        tokens = ((image_side // cell) ** 2, (mask_side // cell) ** 2)
        words = load_tokenizer(tokenizer)
        drawer = JudgementDrawer(words, template, (image_side, mask_side), tokens, tasks, counts, source)
        train, val = (partial(drawer.batch, scenes=scenes, split=split) for split in ("train", "val"))
        super().__init__(train, val, seed, workers, val_batches)


class Regions(nn.Module):
    """How the asked region finds its way into the scores, told layer by layer (mini only; not exported).

    `look` are the layers in which the tokens of a mask attend to the image under it (looking), `point` those in which
    the last token of a question attends to what it asks for (pointing). After `match` layers the two are to be alike
    where they are about the same region (matching), after `cover` layers every token of a mask is to know how far the
    asked region covers it, alone and together with the mask (overlap). The layers that are left read the scores off.
    """

    def __init__(self, width: int, look: tuple[int, int], point: tuple[int, int], match: int, cover: int) -> None:
        super().__init__()
        self.look, self.point = (range(first, last + 1) for first, last in (look, point))
        self.match, self.cover = match, cover
        self.of_question, self.of_mask = (nn.Linear(width, 64, bias=False) for _ in range(2))
        self.overlap = nn.Linear(width, 2 * FINE * FINE)

    @property
    def probed(self) -> set[int]:
        """The layers whose attention is asked for."""
        return {*self.look, *self.point}

    def forward(
        self,
        batch: JudgementBatch,
        hidden: Sequence[Float[Tensor, "b length d"]],
        attention: Mapping[int, Float[Tensor, "b length tokens"]],
        of_masks: Bool[Tensor, "b length"],
    ) -> dict[str, Tensor]:
        """The losses from the states after each number of layers, and what each place attends to in the image."""
        parts: dict[str, Tensor] = {}
        if len(batch.under):
            looks = torch.stack([attention[layer][of_masks] for layer in self.look]).mean(0)
            parts["looking"] = mass_inside(looks, batch.under.flatten(0, 1))
        if len(batch.inside):
            points = torch.stack([attention[layer][batch.asked] for layer in self.point]).mean(0)
            parts["pointing"] = mass_inside(points, batch.inside)
            parts["accuracy/pointing"] = batch.inside.gather(1, points.argmax(1, keepdim=True)).float().mean()
        if len(batch.judges):
            states, tokens = hidden[self.match][batch.asked].float(), hidden[self.match][of_masks].float()
            parts["matching"] = self.matching(batch, self.of_question(states), self.of_mask(tokens))
            covered = self.overlap(hidden[self.cover][of_masks].float()).view_as(batch.shares)
            parts["overlap"] = functional.binary_cross_entropy_with_logits(covered, batch.shares)
        return parts

    def matching(
        self, batch: JudgementBatch, states: Float[Tensor, "n c"], tokens: Float[Tensor, "all c"]
    ) -> Float[Tensor, ""]:
        """Contrastive: of all tokens of a question's masks, those that show its region are the likest to it."""
        share = batch.shares[..., FINE * FINE :].mean(-1)
        own = batch.judges.repeat_interleave(share.shape[1]) == torch.arange(len(states), device=share.device)[:, None]
        similarity = functional.normalize(states, dim=-1) @ functional.normalize(tokens, dim=-1).T
        weights = (similarity / 0.1).masked_fill(~own, -torch.inf).softmax(-1)
        return mass_inside(weights, tokens_inside(own * share.flatten()))


class EvaluatorStage(Stage):
    """Wires InternVL to its loss. `rank` > 0 trains an adapter of that rank and exports it alone.

    `language` is the folder of a generator whose language model is to go on here; for the layers see `Regions`.
    """

    LOSS: ClassVar[Mapping[str, float]] = {
        "words": 1.0,
        "digits": 1.0,
        "looking": 0.5,
        "pointing": 0.5,
        "matching": 0.5,
        "overlap": 5.0,
    }

    def __init__(
        self,
        weights: str,
        export: str,
        rank: int = 0,
        language: str | None = None,
        look: tuple[int, int] = (1, 2),
        point: tuple[int, int] = (3, 4),
        match: int = 5,
        cover: int = 6,
        lr: float = 1e-3,
        warmup: int = 300,
        decay: float = 0.3,
        wd: float = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model, self.tokenizer = load_internvl(Path(weights), None, "float32")
        if rank:
            self.model = get_peft_model(
                self.model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LANGUAGE_LAYERS)
            )
        self.base = self.model.get_base_model() if rank else self.model
        if language is not None:
            take_over_language(self.base.model.language_model, load(Path(language)).mllm.get_decoder())
        width = self.base.config.text_config.hidden_size
        self.regions = None if rank else Regions(width, look, point, match, cover)
        enable(self.base)
        for frozen in (self.base.model.vision_tower, self.base.model.multi_modal_projector):
            frozen.requires_grad_(False)

    def slots(self, ids: Int[Tensor, "b length"], tokens: int) -> tuple[Bool[Tensor, "b length"], ...]:
        """Where the tokens of the image are, of which there are so many, and where those of the masks."""
        slots = ids == self.base.config.image_token_id
        first = slots & (slots.cumsum(1) <= tokens)
        return first, slots & ~first

    def see(self, batch: JudgementBatch) -> Float[Tensor, "b length d"]:
        """Input embeddings, with the pictures' features in their places."""
        ids = batch.packed.ids
        embedded: Tensor = self.base.get_input_embeddings()(ids)
        with torch.no_grad():
            image = self.features(batch.pixels)
            masks = self.features(batch.mask_pixels) if len(batch.mask_pixels) else image[:0]
        of_image, of_masks = self.slots(ids, image.shape[1])
        embedded = embedded.masked_scatter(of_image[..., None], image.to(embedded.dtype))
        return embedded.masked_scatter(of_masks[..., None], masks.to(embedded.dtype))

    def features(self, pixels: Float[Tensor, "n 3 side side"]) -> Float[Tensor, "n tokens d"]:
        """The projected tokens of pictures of one size."""
        features: Tensor = self.base.get_image_features(pixel_values=pixels).pooler_output
        return features

    def read(
        self, batch: JudgementBatch
    ) -> tuple[tuple[Float[Tensor, "b length d"], ...], dict[int, Float[Tensor, "b length tokens"]]]:
        """The states after each number of layers, and what the probed layers attend to in the image (zero elsewhere
        than at the ends of the questions and at the masks)."""
        ids, embedded = batch.packed.ids, self.see(batch)
        image, of_masks = self.slots(ids, batch.inside.shape[1])
        wanted = pad_sequence([torch.nonzero(row)[:, 0] for row in of_masks | batch.asked], batch_first=True)
        layers = self.regions.probed if self.regions and wanted.numel() else set()
        with BlockAttention(batch.packed), probe(layers, wanted) as found:
            hidden = self.base.model.language_model(
                inputs_embeds=embedded,
                attention_mask=batch.packed.mask(),
                position_ids=batch.packed.positions,
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states
        columns, places = torch.nonzero(image[0])[:, 0], wanted[..., None].expand(-1, -1, batch.inside.shape[1])
        seen = {layer: rows.mean(2)[..., columns] for layer, rows in found.layers.items()}
        empty = torch.zeros(*ids.shape, len(columns), device=ids.device)
        return hidden, {layer: empty.scatter(1, places, rows) for layer, rows in seen.items()}

    def losses(self, batch: JudgementBatch) -> dict[str, Tensor]:
        """Cross-entropy of the words and of the digits, how often the likeliest token is right, and the regions."""
        hidden, attention = self.read(batch)
        parts: dict[str, Tensor] = {}
        for name, labels in (("words", batch.words), ("digits", batch.digits)):
            counted = labels != IGNORED
            if counted.any():
                logits = self.base.lm_head(hidden[-1][counted]).float()
                parts[name] = answer_loss(logits, labels[counted])
                parts[f"accuracy/{name}"] = (logits.argmax(-1) == labels[counted]).float().mean()
        if self.regions is not None:
            _, of_masks = self.slots(batch.packed.ids, batch.inside.shape[1])
            parts |= self.regions(batch, hidden, attention, of_masks)
        return parts

    def export(self) -> None:
        """Write the model and its tokenizer, or the adapter alone."""
        if self.hparams["rank"]:
            self.model.save_pretrained(self.hparams["export"], save_embedding_layers=False)
        else:
            save_internvl(self.model, self.tokenizer, Path(self.hparams["export"]))


if __name__ == "__main__":
    run(EvaluatorStage, Judgements)
