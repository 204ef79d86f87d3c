"""A running mean of the weights, which is validated and exported: at a high rate a mean is better than they are.

docs/legs.md compares the mean of four checkpoints with the last of them. Here the mean is over the last tenth of
the steps, so that the weights a run begins with are soon forgotten, and at most over `Schedule.average` of them. Ours.
"""

from typing import Any

from jaxtyping import Float
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from training.optim import Schedule


def towards(mean: Float[Tensor, "*n"], current: Float[Tensor, "*n"], count: Tensor, schedule: Schedule) -> Tensor:
    """The mean after `count` earlier steps and this one."""
    window = (1 + count / 10).clamp(max=schedule.average)
    return mean + (current - mean) / window


class AveragedWeights(WeightAveraging):
    """Keeps the mean, puts it in place of the weights during a validation and at the end, and in checkpoints.

    The weights come back only after what the callbacks before it do at the end of a validation, such as exporting; only
    those that write checkpoints come later.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(use_buffers=False, avg_fn=lambda mean, current, count: towards(mean, current, count, schedule))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing yet."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The weights go on from where they were; a run that has no step left exports the mean again."""
        if trainer.state.fn != TrainerFn.FITTING:
            return  # The weights that a checkpoint holds are the mean.
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if 0 < trainer.max_steps <= checkpoint["global_step"]:
            self.on_train_end(trainer, pl_module)
