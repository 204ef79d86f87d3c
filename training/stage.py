"""How every stage is started, checkpointed, resumed and exported: LightningCLI with a few fixed manners."""

import warnings
from typing import Protocol, runtime_checkable

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI


@runtime_checkable
class Exports(Protocol):
    """A stage that can write its weights in the layout the library loads."""

    def export(self) -> None: ...


class ExportAtEnd(Callback):
    """Writes the trained weights when `fit` ends by itself, and at every validation, so that a stopped run has some."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, Exports) and not trainer.sanity_checking:
            pl_module.export()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, Exports):
            pl_module.export()


def run(stage: type[LightningModule], data: type[LightningDataModule]) -> None:
    """The command line of a stage. Add `--ckpt_path last` to go on from the last checkpoint."""
    torch.set_float32_matmul_precision("high")
    # Models come from the library in eval mode; they have no dropout, so that it makes no difference.
    warnings.filterwarnings("ignore", "Found .* in eval mode")
    LightningCLI(
        stage,
        data,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"callbacks": [ExportAtEnd()], "num_sanity_val_steps": 0},
    )
