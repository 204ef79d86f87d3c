"""Tensors in the files that public repositories have: numbered shards with an index, or sparse ones of true size."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

Ending = Literal["safetensors", "bin"]
_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def write_shards(folder: Path, tensors: Mapping[str, Tensor], shards: int = 2, ending: Ending = "safetensors") -> None:
    """Numbered files and their index, or one file without."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if ending == "safetensors" else "pytorch_model"
    names, places = list(tensors), dict[str, str]()
    for shard in range(shards):
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        number = f"-{shard + 1:05}-of-{shards:05}" if shards > 1 else ""
        held = {name: tensors[name].contiguous() for name in part}
        file = folder / f"{stem}{number}.{ending}"
        save_file(held, file, metadata={"format": "pt"}) if ending == "safetensors" else torch.save(held, file)
        places |= dict.fromkeys(part, file.name)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def write_sparse(file: Path, tensors: Mapping[str, Tensor], ones: str = "") -> None:
    """A safetensors file with tensors of true size that takes no room: zeros, but for ones in the tensor `ones`.

    The tensors may lie on the meta device; only names, shapes and types are taken.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        offsets = [end, end + tensor.numel() * tensor.element_size()]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        end = offsets[1]
    head = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(head)) + head)
        stream.truncate(8 + len(head) + end)
        if ones:
            stream.seek(8 + len(head) + header[ones]["data_offsets"][0])
            stream.write(torch.ones_like(tensors[ones], device="cpu").view(torch.uint8).numpy().tobytes())
