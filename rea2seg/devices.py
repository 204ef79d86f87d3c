"""Where models run."""

import torch

from rea2seg.errors import ConfigError


def chosen_device(name: str) -> str:
    """The device of that name, if this machine has it; `auto` is CUDA where PyTorch can use it, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is not a device: use auto, cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this machine has no CUDA device that PyTorch can use: leave the device out, or use cpu")
    return name
