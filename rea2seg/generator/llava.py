"""The parts of a LISA-like generator: a native LLaVA, the connector to the segmenter, a tokenizer, and how to run them.

`embed`, `last_hidden` and `image_features` are differentiable; training calls them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from rea2seg.checkpoints.lisa import LisaPlan, lisa_plan
from rea2seg.checkpoints.strict import fill, quiet
from rea2seg.devices import ON_CPU, Placement
from rea2seg.generator.tokens import IMAGE
from rea2seg.geometry import CellMap
from rea2seg.images import to_picture

Geometry = Literal["crop", "pad"]

_WIDEST = 16
"""Ours: the aspect ratio beyond which only the middle of an image is resized before its centre is cropped."""


class Connector(nn.Module):
    """Takes the MLLM's hidden state to the segmenter's prompt space, with LISA's parameter names."""

    def __init__(self, hidden: int, out: int) -> None:
        super().__init__()
        layers = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out), nn.Dropout(0.0))
        self.text_hidden_fcs = nn.ModuleList([layers])

    def forward(self, hidden: Float[Tensor, "*n hidden"]) -> Float[Tensor, "*n out"]:
        # The weights may be more precise than the MLLM's, and on another device than its last layer.
        projected: Tensor = self.text_hidden_fcs[0](hidden.to(next(self.parameters())))
        return projected


@dataclass(frozen=True, eq=False)
class Parts:
    """The live modules of a LISA-like generator. An adapter's `get_base_model()` is a fitting `mllm`."""

    mllm: LlavaForConditionalGeneration
    connector: Connector
    tokenizer: PreTrainedTokenizerBase

    def save(self, folder: Path) -> None:
        """Writes the native layout that `load` reads."""
        with quiet():
            self.mllm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        state = {name: weight.detach().cpu().contiguous() for name, weight in self.connector.state_dict().items()}
        save_file(state, folder / "connector.safetensors")


def load(folder: str | Path, placement: Placement = ON_CPU, vision_tower: str | Path | None = None) -> Parts:
    """Reads one of the layouts of `rea2seg.checkpoints.lisa`; raises `CheckpointError` where anything does not fit."""
    return build(lisa_plan(Path(folder), Path(vision_tower) if vision_tower else None), placement)


def build(plan: LisaPlan, placement: Placement) -> Parts:
    """The live modules of a plan."""
    mllm = plan.mllm.load(placement)
    # Vicuna's checkpoints carry a temperature and penalties, which `generate` would mix into any setting of ours.
    mllm.generation_config = GenerationConfig()
    connector = empty_connector(plan)
    fill(connector, plan.source, plan.connector)
    return Parts(mllm, connector.eval().to(mllm.device), plan.tokenizer)


def empty_connector(plan: LisaPlan) -> Connector:
    """A connector as wide as the one on disk, with fresh weights."""
    out = len(plan.connector.get("text_hidden_fcs.0.2.weight", ()))
    return Connector(plan.mllm.config.text_config.hidden_size, out)


def clip_pixels(image: UInt8[Tensor, "3 h w"], side: int, geometry: Geometry) -> Float[Tensor, "3 side side"]:
    """The image as the CLIP tower sees it: PIL bicubic, cropped as CLIP's processor does or padded, then normalised."""
    picture = to_picture(image)
    square = _crop(picture, side) if geometry == "crop" else _letterbox(picture, side)
    scaled = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
    return (scaled - torch.tensor(OPENAI_CLIP_MEAN)[:, None, None]) / torch.tensor(OPENAI_CLIP_STD)[:, None, None]


def cell_map(size: tuple[int, int], side: int, grid: int, geometry: Geometry) -> CellMap:
    """Which pixels of an image of `size` each token of `clip_pixels` stands for; padding is exact to half a pixel of
    the MLLM's input."""
    return CellMap.cropped(size, grid, side) if geometry == "crop" else CellMap.padded(size, grid)


def _crop(picture: Image.Image, side: int) -> Image.Image:
    short, long = sorted(picture.size)
    if long > _WIDEST * short:
        # The crop shows one short side of it; resizing all of a 1 x 10,000 image would need gigabytes.
        picture = _middle(picture, *(min(length, _WIDEST * short) for length in picture.size))
    width, height = (side * length // min(picture.size) for length in picture.size)
    return _middle(picture.resize((width, height), Image.Resampling.BICUBIC), side, side)


def _middle(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _letterbox(picture: Image.Image, side: int) -> Image.Image:
    # Both paddings of a side are equal, so that the image's centre is exactly the centre of the square.
    paddings = [round((side - side * length / max(picture.size)) / 2) for length in picture.size]
    left, top = (min(padding, (side - 1) // 2) for padding in paddings)
    square = Image.new("RGB", (side, side), tuple(round(255 * mean) for mean in OPENAI_CLIP_MEAN))
    square.paste(picture.resize((side - 2 * left, side - 2 * top), Image.Resampling.BICUBIC), (left, top))
    return square


def image_features(
    mllm: LlavaForConditionalGeneration, pixels: Float[Tensor, "images 3 side side"]
) -> Float[Tensor, "images tokens hidden"]:
    """The image tokens, from the tower's layer and with or without CLS as the model's config says, projected."""
    return torch.stack(list(mllm.get_image_features(pixel_values=pixels.to(mllm.dtype)).pooler_output))


def embed(
    mllm: LlavaForConditionalGeneration, ids: Int[Tensor, "batch seq"], features: Float[Tensor, "images tokens hidden"]
) -> Float[Tensor, "batch seq hidden"]:
    """Input embeddings of expanded ids, the image features put at the `IMAGE` positions in reading order."""
    here = ids == IMAGE
    if int(here.sum()) != len(features) * features.shape[1]:
        raise ValueError(f"{int(here.sum())} image positions for {tuple(features.shape[:2])} image tokens")
    embeddings: Tensor = mllm.get_input_embeddings()(ids.masked_fill(here, 0))
    # Where a model is spread over several devices, the projector need not be on that of the embeddings.
    return embeddings.masked_scatter(here[..., None].to(embeddings.device), features.to(embeddings))


def last_hidden(
    mllm: LlavaForConditionalGeneration,
    inputs_embeds: Float[Tensor, "batch seq hidden"],
    attention_mask: Shaped[Tensor, "batch seq"] | Shaped[Tensor, "_ _ seq seq"] | None = None,
    position_ids: Int[Tensor, "_ seq"] | None = None,
) -> Float[Tensor, "batch seq hidden"]:
    """The hidden states after the final norm. A 4-D mask, boolean (True: may attend) or additive, is used as it is."""
    output = mllm.get_decoder()(
        inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    )
    hidden: Tensor = output.last_hidden_state
    return hidden
