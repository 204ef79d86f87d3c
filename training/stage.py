"""What a stage is, and how every stage is started, resumed and exported: LightningCLI with a few fixed manners."""

import logging
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from transformers.utils.logging import disable_progress_bar

from rea2seg import cli
from rea2seg.errors import ConfigError
from training.attention import FullAttention
from training.averaging import AveragedWeights
from training.optim import Schedule, soap
from training.progress import Progress
from training.resuming import LastCheckpoint, WholeCheckpoints, digest, refreshed


class Stage(LightningModule, ABC):
    """What every stage is: a loss that is a weighted sum of named parts, an optimiser, and weights that are exported.

    `LOSS` is the table of weights; other parts that `losses` returns are logged only. `folder` receives the weights,
    `begins_with` are the files or folders of weights that the stage begins with. Its checkpoints hold all of these,
    frozen ones too, so that one that began with others is not gone on with: `ConfigError`.
    """

    LOSS: ClassVar[Mapping[str, float]]

    def __init__(self, folder: str, schedule: Schedule, begins_with: Sequence[str | None] = ()) -> None:
        super().__init__()
        self.folder, self.schedule = Path(folder), schedule
        self.begins_with = {place: digest(Path(place)) for place in begins_with if place is not None}

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The parts of the loss of a batch, and what else is worth a curve, by name."""

    @abstractmethod
    def pictures(self, batch: Any) -> Sequence[Image.Image]:
        """What the model makes of a batch, for a person to look at; none where the batch has nothing to show."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the weights in the layout that the library loads."""

    def training_step(self, batch: Any, index: int) -> Tensor:
        parts = self._parts(batch)
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(batch))
        weighted = [weight * parts[name] for name, weight in self.LOSS.items() if name in parts]
        return torch.stack(weighted).sum()

    def validation_step(self, batch: Any, index: int) -> None:
        self.log_dict({f"val/{name}": value for name, value in self._parts(batch).items()}, batch_size=len(batch))

    def _parts(self, batch: Any) -> dict[str, Tensor]:
        with FullAttention():
            return self.losses(batch)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the norm of the gradient, which is clipped only afterwards, and the learning rate."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self.log_dict({"train/gradient": get_total_norm(gradients), "train/rate": optimizer.param_groups[0]["lr"]})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["begins_with"] = self.begins_with

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        before = checkpoint.get("begins_with", self.begins_with)
        if [*before.values()] != [*self.begins_with.values()]:
            told = f"the checkpoint began with other weights than now lie in {', '.join(self.begins_with)}"
            raise ConfigError(f"{told}: leave out --ckpt_path to begin anew, or put those weights back")

    def configure_callbacks(self) -> list[Callback]:
        """The running mean of the weights; after the callbacks that all stages have."""
        return [AveragedWeights(self.schedule)]

    def configure_optimizers(self) -> dict[str, Any]:
        return soap(self.parameters(), self.schedule, int(self.trainer.estimated_stepping_batches))


class ExportWeights(Callback):
    """Writes the averaged weights at the end of `fit` and at every validation, so that a stopped run has some."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not where a person only validates: the weights are then those of a checkpoint, or even untrained.
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.export(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.export(trainer, pl_module)

    def export(self, trainer: Trainer, stage: LightningModule) -> None:
        if isinstance(stage, Stage) and trainer.is_global_zero:
            with refreshed(stage.folder) as folder:
                stage.export(folder)


class ExamplePictures(Callback):
    """Shows in TensorBoard what the model makes of the first batch of each validation that has something to show."""

    def __init__(self) -> None:
        self.shown_at = -1

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not isinstance(pl_module, Stage) or not writers or self.shown_at == trainer.global_step:
            return
        with trainer.precision_plugin.forward_context():
            pictures = pl_module.pictures(batch)
        for number, picture in enumerate(pictures):
            self.shown_at = trainer.global_step
            for writer in writers:
                writer.add_image(f"examples/{number}", np.asarray(picture), trainer.global_step, dataformats="HWC")


class StageCLI(LightningCLI):
    """All that the stages' configs have in common; `trainer.default_root_dir` is the folder that a stage works in.

    Checkpoints, logs and TensorBoard's files have folders of their own in it.
    """

    COMMON: ClassVar[Mapping[str, Any]] = {
        "accelerator": "cpu",
        "max_epochs": -1,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 25,
        "gradient_clip_val": 1.0,  # Ours, as is how often is logged.
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(LastCheckpoint, "checkpoints")
        parser.link_arguments(
            "trainer.default_root_dir", "checkpoints.dirpath", compute_fn=lambda folder: f"{folder or '.'}/checkpoints"
        )

    def instantiate_trainer(self, **options: Any) -> Trainer:
        folder = self._get(self.config_init, "trainer.default_root_dir") or "."
        if self._get(self.config_init, "trainer.logger") is None:
            rows = CSVLogger(folder, "log", flush_logs_every_n_steps=1)
            curves = TensorBoardLogger(folder, "", "tensorboard", default_hp_metric=False, flush_secs=5)
            options["logger"] = [rows, curves]
        return super().instantiate_trainer(**options, plugins=[WholeCheckpoints()])


def quieten() -> None:
    """Leave the terminal to `Progress`: what else is said there helps nobody who follows a training."""
    disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Models come from the library in eval mode; they have no dropout, so that it makes no difference.
    warnings.filterwarnings("ignore", "Found .* in eval mode")
    # The same command begins a run and goes on with it.
    warnings.filterwarnings("ignore", ".*there is no last checkpoint available")
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")


def run(stage: type[Stage], data: type[LightningDataModule]) -> NoReturn:
    """The command line of a stage. Add `--ckpt_path last` to go on from the last checkpoint."""
    sys.exit(cli.run(partial(fit, stage, data)))


def fit(stage: type[Stage], data: type[LightningDataModule]) -> int:
    """What the command line asks of a stage; returns the exit status. Its errors are raised."""
    torch.set_float32_matmul_precision("high")
    quieten()
    StageCLI(
        stage,
        data,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={**StageCLI.COMMON, "callbacks": [ExportWeights(), ExamplePictures(), Progress()]},
    )
    return cli.DONE
