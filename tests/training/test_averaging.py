"""The mean of the weights is what is validated, exported and kept; training goes on with the weights themselves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training.averaging import towards
from training.optim import Schedule
from training.resuming import LastCheckpoint
from training.stage import ExportWeights, Stage

STEPS = 40


class Walk(Stage):
    """One weight, which every step moves by about the rate; notes the weight at each step, validation and export."""

    LOSS: ClassVar[Mapping[str, float]] = {"loss": 1.0}

    def __init__(self, folder: Path, average: int) -> None:
        super().__init__(str(folder), Schedule(lr=0.1, warmup=1, decay=0.0, wd=0.0, average=average))
        self.weight = nn.Parameter(torch.zeros(()))
        self.trained: list[float] = []
        self.validated: list[float] = []

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        (self.trained if self.training else self.validated).append(self.weight.item())
        return {"loss": self.weight + batch.sum()}

    def pictures(self, batch: Any) -> list[Any]:
        return [*batch[:0]]

    def export(self, folder: Path) -> None:
        (folder / "weight").write_text(repr(self.weight.item()))


def walked(folder: Path, average: int) -> Walk:
    stage = Walk(folder / "weights", average)
    trainer = Trainer(
        max_steps=STEPS, val_check_interval=STEPS // 2, callbacks=[ExportWeights(), LastCheckpoint(str(folder), 10)],
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    batches: Any = DataLoader(torch.zeros(STEPS, 1))
    trainer.fit(stage, batches, DataLoader(torch.zeros(1, 1)))  # type: ignore[arg-type]
    return stage


def mean_of(steps: list[float], average: int) -> float:
    """The mean after these weights, each after one step."""
    mean = torch.tensor(steps[0])
    for count, weight in enumerate(steps[1:], start=1):
        mean = towards(mean, torch.tensor(weight), torch.tensor(count), Schedule(average=average))
    return mean.item()


@pytest.mark.filterwarnings("ignore:The '.*' does not have many workers")
@pytest.mark.parametrize("average", [1, 3, 100])
def test_the_mean_is_validated_exported_and_kept(tmp_path: Path, average: int) -> None:
    stage = walked(tmp_path, average)
    after = stage.trained[1:]  # the weight that the next step sees
    kept = torch.load(tmp_path / "last.ckpt", weights_only=False)
    last = kept["current_model_state"]["weight"].item()
    assert stage.validated == pytest.approx([mean_of(after[: STEPS // 2], average), mean_of([*after, last], average)])
    assert float((tmp_path / "weights/weight").read_text()) == pytest.approx(stage.validated[1])
    assert kept["state_dict"]["weight"].item() == pytest.approx(stage.validated[1])
    assert (stage.validated[1] == pytest.approx(last)) == (average == 1)
    # The validation in the middle did not touch the walk.
    steps = torch.tensor(after).diff()
    assert steps[STEPS // 2 - 1] == pytest.approx(steps.mean().item(), rel=0.2)


def test_the_mean_is_over_the_last_tenth_of_the_steps_and_no_more_than_asked() -> None:
    mean, current, counts = torch.tensor(0.0), torch.tensor(1.0), (0, 10, 90, 990, 9990)
    shares = [towards(mean, current, torch.tensor(count), Schedule(average=100)).item() for count in counts]
    assert shares == pytest.approx([1, 1 / 2, 1 / 10, 1 / 100, 1 / 100])
