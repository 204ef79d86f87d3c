"""What a stage is, and how every stage is started, resumed and exported: LightningCLI with a few fixed manners."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from training.optim import Schedule, soap


class Stage(LightningModule, ABC):
    """What every stage is: a loss that is a weighted sum of named parts, an optimiser, and weights that are exported.

    `LOSS` is the table of weights; other parts that `losses` returns are logged only. `folder` receives the weights.
    """

    LOSS: ClassVar[Mapping[str, float]]

    def __init__(self, folder: str, schedule: Schedule) -> None:
        super().__init__()
        self.folder, self.schedule = Path(folder), schedule

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The parts of the loss of a batch, and what else is worth a curve, by name."""

    @abstractmethod
    def export(self) -> None:
        """Write the weights in the layout that the library loads."""

    def training_step(self, batch: Any, index: int) -> Tensor:
        parts = self.losses(batch)
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(batch))
        weighted = [weight * parts[name] for name, weight in self.LOSS.items() if name in parts]
        return torch.stack(weighted).sum()

    def validation_step(self, batch: Any, index: int) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.losses(batch).items()}, batch_size=len(batch))

    def configure_optimizers(self) -> dict[str, Any]:
        return soap(self.parameters(), self.schedule, int(self.trainer.estimated_stepping_batches))


class ExportWeights(Callback):
    """Writes the trained weights when `fit` ends by itself, and at every validation, so that a stopped run has some."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, Stage) and trainer.is_global_zero and not trainer.sanity_checking:
            pl_module.export()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, Stage) and trainer.is_global_zero:
            pl_module.export()


def run(stage: type[Stage], data: type[LightningDataModule]) -> None:
    """The command line of a stage. Add `--ckpt_path last` to go on from the last checkpoint."""
    torch.set_float32_matmul_precision("high")
    # Models come from the library in eval mode; they have no dropout, so that it makes no difference.
    warnings.filterwarnings("ignore", "Found .* in eval mode")
    LightningCLI(
        stage,
        data,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"callbacks": [ExportWeights()], "num_sanity_val_steps": 0},
    )
