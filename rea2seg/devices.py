"""Where models run."""

import torch

from rea2seg.errors import ConfigError


def chosen_device(name: str) -> str:
    """The device of that name, if this machine has it; `auto` is CUDA where PyTorch can use it, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is not a device: use auto, cpu or cuda") from error
    if device.type != "cpu":
        _check(device)
    return name


def _check(device: torch.device) -> None:
    own = torch.accelerator.current_accelerator(check_available=True)
    if own is None or device.type != own.type:
        kind = device.type.upper()
        raise ConfigError(f"this machine has no {kind} device that PyTorch can use: leave the device out, or use cpu")
    count = torch.accelerator.device_count()
    if (device.index or 0) >= count:
        raise ConfigError(f"this machine has no device {str(device)!r}: the last one is {own.type}:{count - 1}")
