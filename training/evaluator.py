"""The evaluator learns to look, to explain, and to score masks, in two stages.

    python -m training.evaluator fit --config configs/train/evaluator_stage1.yaml
    python -m training.evaluator fit --config configs/train/evaluator_stage2.yaml

Stage 1: scores of drawn masks and of the generator's candidates, without and with reasoning, what lies under a mask,
and questions answered in words. Stage 2: the candidates alone, as a LoRA adapter on the language layers (the paper
trains both stages with LoRA of rank 128 on InternVL3-8B). Departures, mini only: stage 1 trains all of the language
model, because nothing here comes trained, from that of the generator on, which already knows the questions;
`training.guidance` adds eight losses that lead it from the asked region to the masks; the digits of the scores and the
words for IoUs have losses of their own, so that other words do not drown them, and so has the choice among the masks
that the scores make (`training.scores`); most groups are read with a wrong reply so far (`misread` of the data),
because at inference it is the evaluator's own.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPast

from rea2seg.errors import ConfigError
from rea2seg.evaluators.prompts import SHORT, EvaluatorTemplate
from rea2seg.evaluators.replies import ScoreGrammar
from rea2seg.evaluators.weights import load_internvl
from rea2seg.generator.attention import enable
from rea2seg.generator.llava import load
from training.batches import Stream
from training.examples import Source
from training.guidance import Guidance, GuidedLayers
from training.judgements import IGNORED, JudgementBatch, JudgementDrawer, Portion, Task
from training.mini import load_tokenizer, save_internvl
from training.optim import Schedule
from training.packing import BlockAttention
from training.pictures import IMAGENET, SHOWN, captioned, judged, plain, restored
from training.scores import WrittenScores
from training.stage import Stage, run
from training.take_over import take_over_language

LANGUAGE_LAYERS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


class Judgements(Stream):
    """Tasks about the pictures of a source. `cell` is how many pixels a side the model's tokens have, `misread` the
    share of scored groups of which what is already written is read wrong (ours)."""

    def __init__(
        self,
        tokenizer: str,
        tasks: Mapping[Task, Portion],
        source: Source,
        template: EvaluatorTemplate = SHORT,
        image_side: int = 192,
        mask_side: int = 64,
        cell: int = 16,
        scenes: int = 8,
        seed: int = 0,
        workers: int = 1,
        val_batches: int = 16,
        misread: float = 0.75,
    ) -> None:
        tokens = ((image_side // cell) ** 2, (mask_side // cell) ** 2)
        words = load_tokenizer(tokenizer)
        drawer = JudgementDrawer(words, template, (image_side, mask_side), tokens, tasks, source, misread)
        train, val = (partial(drawer.batch, scenes=scenes, split=split) for split in ("train", "val"))
        super().__init__(train, val, seed, workers, val_batches)


def as_scores(digits: Int[Tensor, " n"]) -> list[float]:
    """Numbers of three digits, one before the point; at most 1, after which decimals mean nothing."""
    whole, tenths, hundredths = digits.view(-1, 3).T.tolist()
    return [min(a + b / 10 + c / 100, 1.0) for a, b, c in zip(whole, tenths, hundredths, strict=True)]


class EvaluatorStage(Stage):
    """Wires InternVL to its loss. `rank` > 0 trains an adapter of that rank and exports it alone.

    `language` is the folder of a generator whose language model is to go on here. The vision tower and its projector
    learn too unless `frozen_tower`. `guided` are the layers of `training.guidance`, without which an adapter learns.
    `compiled`: the norms and MLPs of the language layers through `torch.compile`, which needs a C++ compiler.
    """

    LOSS: ClassVar[Mapping[str, float]] = {
        "words": 1.0,
        "verdicts": 0.5,
        "digits": 1.0,
        "choice": 0.5,
        "looking": 0.5,
        "mention": 0.5,
        "attention": 0.5,
        "pointing": 0.5,
        "matching": 0.5,
        "overlap": 5.0,
        "reading": 0.5,
        "quoting": 0.5,
    }
    """The four of the replies, then the eight of `training.guidance`. Ours."""

    def __init__(
        self,
        weights: str,
        export: str,
        rank: int = 0,
        language: str | None = None,
        frozen_tower: bool = True,
        guided: GuidedLayers = GuidedLayers(),  # noqa: B008 - frozen
        schedule: Schedule = Schedule(),  # noqa: B008 - frozen
        compiled: bool = False,
    ) -> None:
        super().__init__(export, schedule, [weights, language])
        if rank and language is not None:
            raise ConfigError("an adapter goes on from `weights`; `language` belongs to the training of all layers")
        if rank and not frozen_tower:
            raise ConfigError("an adapter is one of the language layers: with a `rank` the tower stays frozen")
        self.model, self.tokenizer = load_internvl(Path(weights))
        self.digits = ScoreGrammar.of(self.tokenizer).digits
        if rank:
            self.model = get_peft_model(
                self.model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LANGUAGE_LAYERS)
            )
        self.base = self.model.get_base_model() if rank else self.model
        if language is not None:
            take_over_language(self.base.model.language_model, load(language).mllm.get_decoder())
        text = self.base.config.text_config
        self.guidance = None if rank else Guidance(text.hidden_size, text.num_hidden_layers, guided)
        enable(self.base)
        for sees in (self.base.model.vision_tower, self.base.model.multi_modal_projector):
            sees.requires_grad_(not frozen_tower)
        if compiled:
            for layer in self.base.model.language_model.layers:
                for part in (layer.input_layernorm, layer.post_attention_layernorm, layer.mlp):
                    part.compile(dynamic=True)

    def slots(
        self, ids: Int[Tensor, "b length"], tokens: int
    ) -> tuple[Bool[Tensor, "b length"], Bool[Tensor, "b length"]]:
        """Where the tokens of the image are, the first `tokens` slots of each row, and where those of the masks."""
        slots = ids == self.base.config.image_token_id
        first = slots & (slots.cumsum(1) <= tokens)
        return first, slots & ~first

    def see(
        self, batch: JudgementBatch, of_image: Bool[Tensor, "b length"], of_masks: Bool[Tensor, "b length"]
    ) -> Float[Tensor, "b length d"]:
        """Input embeddings, with the pictures' features in their places."""
        image = self.features(batch.pixels)
        # In mixed precision the tower's type is the shorter one, and so is then all that the layers hand on.
        embedded: Tensor = self.base.get_input_embeddings()(batch.packed.ids).to(image.dtype)
        masks = self.features(batch.mask_pixels) if len(batch.mask_pixels) else image[:0]
        for slots, features in ((of_image, image), (of_masks, masks)):
            if slots.sum() != features.shape[:-1].numel():
                raise ConfigError("the batches' sides and cell are not those of the model: slots and features differ")
            embedded = embedded.masked_scatter(slots[..., None], features)
        return embedded

    def features(self, pixels: Float[Tensor, "n 3 side side"]) -> Float[Tensor, "n tokens d"]:
        """The projected tokens of pictures of one size."""
        features: Tensor = self.base.get_image_features(pixel_values=pixels).pooler_output
        return features

    def read(self, batch: JudgementBatch, embedded: Float[Tensor, "b length d"]) -> BaseModelOutputWithPast:
        """What the language model makes of the packed blocks."""
        with BlockAttention(batch.packed):
            return self.base.model.language_model(
                inputs_embeds=embedded,
                attention_mask=batch.packed.mask(),
                position_ids=batch.packed.positions,
                use_cache=False,
                output_hidden_states=self.guidance is not None,
            )

    def losses(self, batch: JudgementBatch) -> dict[str, Tensor]:
        """Cross-entropy of the words, of those for IoUs and of the digits, how often the likeliest token is right, the
        choice among the masks, and the guidance."""
        of_image, of_masks = self.slots(batch.packed.ids, batch.inside.shape[1])
        watch = nullcontext() if self.guidance is None else self.guidance.watch(batch, of_masks)
        embedded = self.see(batch, of_image, of_masks)
        with watch as watched:
            read = self.read(batch, embedded)
        parts: dict[str, Tensor] = {}
        verdicts = batch.verdicts.roll(-1, 1)  # where they are foretold
        for name, places in (("words", ~verdicts), ("verdicts", verdicts)):
            counted = places & (batch.words != IGNORED)
            if counted.any():
                logits, labels = self.foretold(read, counted), batch.words[counted]
                parts[name] = functional.cross_entropy(logits, labels)
                parts[f"accuracy/{name}"] = (logits.argmax(-1) == labels).float().mean()
        if len(batch.judges):
            parts |= WrittenScores.of(batch, self.foretold(read, batch.digits != IGNORED), self.digits).losses()
        if self.guidance is None or watched is None:
            return parts
        return parts | self.guidance.losses(batch, read.hidden_states, watched, of_image[0], of_masks)

    def foretold(self, read: BaseModelOutputWithPast, places: Bool[Tensor, "b length"]) -> Float[Tensor, "n vocab"]:
        """The logits of the tokens after some places."""
        logits: Tensor = self.base.lm_head(read.last_hidden_state[places]).float()
        return logits

    def pictures(self, batch: JudgementBatch) -> list[Image.Image]:
        """Of the first pictures the first question about scores: each mask with the IoU told | the true one.

        Every digit that is told is the likeliest after the right ones before it.
        """
        if not len(batch.judges):
            return []
        packed, digits = batch.packed, list(self.digits)
        embedded = self.see(batch, *self.slots(packed.ids, batch.inside.shape[1]))
        hidden = self.read(batch, embedded).last_hidden_state
        pictures, question = [], 0
        for row, owner in enumerate(packed.owner[:SHOWN]):
            at = (owner == 0) & (batch.digits[row] != IGNORED)
            told = self.base.lm_head(hidden[row, at])[:, digits].argmax(-1)
            true = torch.tensor([digits.index(token) for token in batch.digits[row, at].tolist()])
            end = int(torch.nonzero((owner == 0) & batch.question_ends[row])[0])
            asked = self.tokenizer.decode(packed.ids[row, : end + 1][owner[: end + 1] == 0]).strip()
            masks = [restored(mask, *IMAGENET) for mask in batch.mask_pixels[batch.judges == question]]
            image = plain(restored(batch.pixels[row], *IMAGENET))
            pictures.append(captioned(asked, image, judged(masks, as_scores(told), as_scores(true))))
            question += int(owner.max()) + 1
        return pictures

    def export(self, folder: Path) -> None:
        """Write the model and its tokenizer, or the adapter alone."""
        if isinstance(self.model, PeftModel):
            self.model.save_pretrained(folder, save_embedding_layers=False)
        else:
            save_internvl(self.model, self.tokenizer, folder)


if __name__ == "__main__":
    run(EvaluatorStage, Judgements)
