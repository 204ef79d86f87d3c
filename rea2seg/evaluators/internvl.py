"""InternVL as the evaluator: image, question and a group of binary masks in, one IoU for each mask out.

The image and the question are read once per query; their key-value cache is shared by the groups, whose replies are
written side by side. Departures from the paper, which processes groups one by one: that batching; numbers under a
grammar that cannot produce a wrong count; and a read-out by expectation beside the parsed text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import InternVLConfig, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from rea2seg.checkpoints.internvl import internvl_plan
from rea2seg.checkpoints.vocabulary import check_vocabulary
from rea2seg.devices import HERE, Placement
from rea2seg.errors import CheckpointError, ConfigError, require_choice, require_positive
from rea2seg.evaluators.decoding import Memory, Reply, think, write_scores
from rea2seg.evaluators.prompts import EvaluatorTemplate, piece_ids, prefix_ids, suffix_ids
from rea2seg.evaluators.replies import ScoreGrammar, confidence, expected_value, parse_scores, split_numbers
from rea2seg.evaluators.weights import Parts, build, with_fresh_adapter
from rea2seg.findings import Finding, Footprint, cache_bytes, footprint, stored_as
from rea2seg.images import to_picture
from rea2seg.structures import Candidate, Query, Score

Readout = Literal["text", "expected"]

SIDE = 448
"""Pixels of a tile of InternVL3."""
TILES = 1


def image_pixels(image: UInt8[Tensor, "3 h w"], side: int) -> Float[Tensor, "3 side side"]:
    """The image stretched to a square tile (bicubic), normalised with ImageNet's mean and deviation."""
    return _stretched(image, side, side)


def tiled_pixels(image: UInt8[Tensor, "3 h w"], side: int, most: int) -> Float[Tensor, "n 3 side side"]:
    """The image in at most `most` tiles, row by row, and last the whole of it in one tile where there are several.

    The grid is InternVL's: the one closest to the image's aspect, which the image is stretched to fill.
    """
    columns, rows = get_optimal_tiled_canvas((image.shape[1], image.shape[2]), (side, side), 1, most)
    filled = _stretched(image, rows * side, columns * side)
    tiles = [tile for row in torch.split(filled, side, 1) for tile in torch.split(row, side, 2)]
    return torch.stack(tiles if len(tiles) == 1 else [*tiles, image_pixels(image, side)])


def mask_pixels(masks: Bool[Tensor, "n h w"], side: int) -> Float[Tensor, "n 3 side side"]:
    """Each mask as a picture, white on black and as grey as a pixel is partly covered, normalised like the image."""
    pictures = [Image.fromarray(mask) for mask in masks.cpu().numpy().astype(np.uint8) * 255]
    resized = np.stack([np.asarray(picture.resize((side, side), Image.Resampling.BOX)) for picture in pictures])
    return _normalised((torch.from_numpy(resized)[:, None] / 255).expand(-1, 3, -1, -1))


def tokens_per_tile(config: InternVLConfig, side: int) -> int:
    """How many tokens the model spends on a square picture of `side` pixels. `ConfigError` if cells do not tile it."""
    cell = round(config.vision_config.patch_size[0] / config.downsample_ratio)
    if side <= 0 or side % cell:
        raise ConfigError(f"a side of {side} pixels does not divide into this model's cells of {cell}: take a multiple")
    return int(side // cell) ** 2


def check_words(
    tokenizer: PreTrainedTokenizerBase,
    config: InternVLConfig,
    template: EvaluatorTemplate,
    reasoning: bool,
    source: str,
) -> tuple[ScoreGrammar, set[int]]:
    """The grammar of scores, and the ids that end a reply, if a model and its tokenizer can be asked in a template.

    config: the model's. source: what messages call the tokenizer. Raises `CheckpointError` and `ConfigError`.
    """
    check_vocabulary(tokenizer, config, (), source, template.image_slot)
    # What the first question would find out.
    prefix_ids(tokenizer, template, "x", 1)
    suffix_ids(tokenizer, template, 1, 1, reasoning)
    end = piece_ids(tokenizer, template, template.end)
    if not end:
        raise ConfigError("the template's `end` is empty: name the token that ends a reply")
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{source} has no eos_token: take its files from the checkpoint")
    return ScoreGrammar.of(tokenizer), {end[0], tokenizer.eos_token_id}


class InternVL:
    """An evaluator on `InternVLForConditionalGeneration`.

    weights: a folder with the model and its tokenizer, in transformers' native layout or InternVL's original one.
    adapter: a PEFT folder, merged into the model, or kept beside it where it is quantised.
    image_side, mask_side: pixels of the squares that the image and each mask are resized to. image_tiles: the most
    squares that a large image is cut into, as InternVL does, with one of the whole image added. They and the template
    must be those of the training.
    reasoning: let the model think in words first. readout: `expected` takes the expectation of each number over its
    digits, `text` the number as written. Raises `ConfigError` and `CheckpointError`; words are checked before weights
    are loaded.
    """

    def __init__(
        self,
        weights: str | Path | Parts,
        adapter: str | Path | None = None,
        reasoning: bool = False,
        readout: Readout = "expected",
        template: EvaluatorTemplate | None = None,
        image_side: int = SIDE,
        mask_side: int = SIDE,
        image_tiles: int = TILES,
        max_reasoning_tokens: int = 256,  # ours
        placement: Placement = HERE,
    ) -> None:
        require_choice(Readout, readout=readout)
        require_positive(image_tiles=image_tiles)
        source = weights if isinstance(weights, Parts) else internvl_plan(Path(weights))
        self.template, config = template or EvaluatorTemplate(), source.model.config
        name = "the tokenizer" if isinstance(weights, Parts) else f"the tokenizer in {weights}"
        self.grammar, self.stops = check_words(source.tokenizer, config, self.template, reasoning, name)
        self.image_tokens, self.mask_tokens = (tokens_per_tile(config, side) for side in (image_side, mask_side))
        parts = source if isinstance(source, Parts) else build(source, Path(adapter) if adapter else None, placement)
        self.model, self.tokenizer = parts
        self.placement = placement
        self.reasoning, self.readout, self.max_reasoning_tokens = reasoning, readout, max_reasoning_tokens
        self.image_side, self.mask_side, self.image_tiles = image_side, mask_side, image_tiles
        self._last_image: tuple[Tensor, Tensor] | None = None

    @classmethod
    def wrap(cls, model: Any, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> InternVL:
        """An evaluator on a live model, or its PEFT wrapper, which stays where and in what mode it is."""
        return cls(Parts(model, tokenizer), **settings)

    @classmethod
    def examine(
        cls,
        weights: str,
        adapter: str | None = None,
        reasoning: bool = False,
        template: Mapping[str, Any] | None = None,
        image_side: int = SIDE,
        mask_side: int = SIDE,
        image_tiles: int = TILES,
        placement: Mapping[str, Any] = MappingProxyType({}),
        **_: Any,
    ) -> Iterator[Finding | Footprint]:
        """What a pipeline with these arguments will load, found without loading it (`rea2seg.findings`).

        Raises `CheckpointError` and `ConfigError` as the constructor does.
        """
        plan, words = internvl_plan(Path(weights)), EvaluatorTemplate(**template or {})
        model, config = plan.model.check(), plan.model.config
        text = config.text_config
        yield Finding("tensors", f"InternVL {stored_as(plan.model.tensors)}: all fit")
        yield Finding("config", f"{text.num_hidden_layers} layers of width {text.hidden_size}")
        check_words(plan.tokenizer, config, words, reasoning, f"the tokenizer in {weights}")
        ids = f"{words.image_slot} is {config.image_token_id} of {text.vocab_size}"
        yield Finding("ids", f"{ids}, digits are single tokens")
        tile, mask = (tokens_per_tile(config, side) for side in (image_side, mask_side))
        most = tile * (image_tiles + (image_tiles > 1))
        yield Finding("image", f"at most {most} tokens of the picture, {mask} of each mask")
        # Ours: keys and values of three groups of five masks behind their prefix, and as much again for the rest.
        place = Placement(**placement)
        working = 2 * cache_bytes(text, 3 * (most + 5 * mask), place.precision)
        # Counted before the adapter's own weights are in the model, as it will be merged.
        needed = footprint(model, working, place)
        if adapter is not None:
            with_fresh_adapter(model, Path(adapter))
            yield Finding("adapter", "all tensors fit")
        yield needed

    def score(self, query: Query, groups: Sequence[Sequence[Candidate]]) -> list[list[Score]]:
        """One score for each candidate of each group, all groups in one batch."""
        with self.placement.present(self.model):
            return self._score(query, groups) if groups else []

    # Not around `present`, which would then leave weights that are inference tensors for good.
    @torch.inference_mode()
    def _score(self, query: Query, groups: Sequence[Sequence[Candidate]]) -> list[list[Score]]:
        masks = torch.stack([candidate.mask for group in groups for candidate in group])
        prefix, features = self._read(query), self._features(mask_pixels(masks, self.mask_side))
        memory = Memory(self.model, prefix, len(groups), features)
        replies = [Reply(len(group), self._start(len(group))) for group in groups]
        if self.reasoning:
            think(memory, replies, self.grammar, self.stops, self.max_reasoning_tokens)
        write_scores(memory, replies, self.grammar)
        return [self._judge(reply) for reply in replies]

    def _start(self, masks: int) -> list[int]:
        ids = suffix_ids(self.tokenizer, self.template, masks, self.mask_tokens, self.reasoning)
        return ids if self.reasoning else [*ids, *self.grammar.opening]

    def _features(self, pixels: Float[Tensor, "n 3 side side"]) -> Float[Tensor, "n tokens c"]:
        features: Tensor = self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output
        return features

    def _read(self, query: Query) -> DynamicCache:
        """The cache of the prefix. The features of the last image are kept, for its other questions."""
        last = self._last_image
        # By its pixels: a caller may write the next frame of a video into the same tensor.
        if last is None or not torch.equal(last[0], query.image):
            pixels = tiled_pixels(query.image, self.image_side, self.image_tiles)
            last = self._last_image = query.image.clone(), self._features(pixels)
        ids = prefix_ids(self.tokenizer, self.template, query.text, len(last[1]) * self.image_tokens)
        return self.model(
            input_ids=torch.tensor([ids], device=self.model.device),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=last[1])},
            use_cache=True,
            logits_to_keep=1,
        ).cache

    def _judge(self, reply: Reply) -> list[Score]:
        text = self.tokenizer.decode([*self.grammar.opening, *reply.written])
        numbers = split_numbers(reply.choices)
        values = parse_scores(text, reply.masks)
        if values is not None and self.readout == "expected":
            values = tuple(expected_value(number) for number in numbers)
        sure = [confidence(number) for number in numbers]
        if values is None or not all(map(math.isfinite, (*values, *sure))):
            return [Score(None, fallback=True)] * reply.masks
        thought = self.tokenizer.decode(reply.thought, skip_special_tokens=True).strip()
        return [Score(value, thought, mass) for value, mass in zip(values, sure, strict=True)]


def _stretched(image: UInt8[Tensor, "3 h w"], height: int, width: int) -> Float[Tensor, "3 height width"]:
    resized = np.array(to_picture(image).resize((width, height), Image.Resampling.BICUBIC))
    return _normalised(torch.from_numpy(resized).permute(2, 0, 1) / 255)


def _normalised(pixels: Float[Tensor, "*n 3 height width"]) -> Float[Tensor, "*n 3 height width"]:
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (pixels - mean) / std
