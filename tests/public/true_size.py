"""Whole pipelines of true size in sparse files, which take no room and hold no knowledge: for the doctor."""

# First: it makes torchvision, which transformers imports, usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from segment_anything import sam_model_registry
from torch import Tensor

from tests.public import internvl, lens, lisa
from tests.public.sam2 import public_sam2
from tests.public.shards import write_sparse

HALF = torch.bfloat16


def empty(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = HALF) -> dict[str, Tensor]:
    """Tensors of these shapes that hold nothing."""
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}


def write_true_lens(folder: Path) -> None:
    """What configs/rea2seg_lens_3b.yaml names."""
    size = lens.PUBLIC
    tensors = empty(lens.qwen_shapes(size) | lens.extra_shapes(size))
    write_sparse(folder / "generator" / "model.safetensors", tensors)
    lens.write_config(folder / "generator", size, lens.write_tokenizer(folder / "generator"))
    write_sparse(folder / "segmenter" / "sam2_hiera_large.safetensors", public_sam2("large", "2.0").state_dict())
    _write_scorer(folder / "evaluator")


def write_true_llava(folder: Path) -> None:
    """What configs/rea2seg_llava15_7b.yaml names."""
    stored, clip, text, vision = lisa.true_tensors(lisa.TRUE["READ-7B"])
    full = ("model.visual_model.", "model.text_hidden_fcs.")
    tensors = {name: weight if name.startswith(full) else weight.to(HALF) for name, weight in stored.items()}
    write_sparse(folder / "generator" / "model.safetensors", tensors, ones="model.norm.weight")
    lisa.write_tokenizer(folder / "generator", list(lisa.SESAME_7B.added))
    _write_json(folder / "generator", lisa.lisa_config(lisa.SESAME_7B) | text.to_dict())
    write_sparse(folder / "vision_tower" / "model.safetensors", clip)
    _write_json(folder / "vision_tower", {"model_type": "clip", "vision_config": vision.to_dict()})
    with torch.device("meta"):
        write_sparse(folder / "segmenter" / "sam_vit_h.safetensors", sam_model_registry["vit_h"]().state_dict())
    _write_scorer(folder / "evaluator")


def _write_scorer(folder: Path) -> None:
    sizes = internvl.TRUE["8B"]
    write_sparse(folder / "model.safetensors", empty(internvl.original_shapes(sizes)))
    _write_json(folder, internvl.original_config(sizes))
    internvl.write_tokenizer(folder)


def _write_json(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


WRITERS = {"rea2seg_llava15_7b": write_true_llava, "rea2seg_lens_3b": write_true_lens}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.public.true_size")
    parser.add_argument("config", choices=WRITERS)
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    WRITERS[chosen.config](chosen.folder)
