"""Where models run, and in what precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from rea2seg.errors import ConfigError, require_choice

Precision = Literal["float32", "bfloat16", "float16", "int8", "nf4"]
Spread = Literal["auto", "balanced", "sequential"]


@dataclass(frozen=True)
class Placement:
    """Where the weights of a large model lie, and in what precision.

    device: as in `chosen_device`. precision: `int8` and `nf4` quantise the language model with bitsandbytes. offload:
    the weights wait in the CPU's memory and visit the device for the length of a call, so that two models which do not
    fit together can take turns. device_map: one of accelerate's ways to spread a model over all GPUs of the machine.
    Raises `ConfigError` where these contradict each other.
    """

    device: str = "auto"
    precision: Precision = "float32"
    offload: bool = False
    device_map: Spread | None = None

    def __post_init__(self) -> None:
        require_choice(Precision, precision=self.precision)
        if self.device_map is not None:
            require_choice(Spread, device_map=self.device_map)
            if self.device not in ("auto", "cuda"):
                told = f"device_map {self.device_map} takes all GPUs, and device names {self.device}"
                raise ConfigError(f"{told}: leave one of the two out")
        if self.quantised and find_spec("bitsandbytes") is None:
            raise ConfigError(f"precision {self.precision} needs bitsandbytes: pip install 'bitsandbytes>=0.49'")
        if self.offload and (self.device_map is not None or self.precision == "int8"):
            other = "int8" if self.precision == "int8" else f"device_map {self.device_map}"
            raise ConfigError(f"offload moves whole models, which {other} does not allow: leave one of the two out")

    @property
    def quantised(self) -> bool:
        """Whether bitsandbytes is needed."""
        return self.precision in ("int8", "nf4")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, or of what is left of them in full beside quantised ones and of the arithmetic."""
        if self.quantised:
            if chosen_device(self.device) == "cpu":
                return torch.float32
            native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if native else torch.float16
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.precision]

    @contextmanager
    def present(self, *models: nn.Module) -> Iterator[None]:
        """The models on their device for as long as the block lasts; without `offload` they are there anyway.

        Enter it outside of `torch.inference_mode`, which would mark what it moves for good.
        """
        with ExitStack() as visits:
            for model in models if self.offload else ():
                visits.enter_context(_visit(model, chosen_device(self.device), self.quantised))
            yield


@contextmanager
def _visit(model: nn.Module, place: str, quantised: bool) -> Iterator[None]:
    if quantised:  # its weights have state beside them, which only `to` takes along
        try:
            model.to(place)
            yield
        finally:
            model.to("cpu")
        return
    # Copies go to the device, the originals stay: nothing needs to be carried back.
    home = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    try:
        for tensor, own in home:
            tensor.data = own.to(place)
        yield
    finally:
        for tensor, own in home:
            tensor.data = own


HERE, ON_CPU = Placement(), Placement("cpu")
"""In full precision, on the best device there is and on the CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, a GPU's or the CPU's, which PyTorch tells by the words of a `RuntimeError` alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


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
