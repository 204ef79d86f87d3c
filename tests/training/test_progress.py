"""What a person sees while a stage is trained."""

from types import SimpleNamespace

import pytest
import torch

from training.progress import Progress

pytestmark = pytest.mark.usefixtures("unchecked")


class Model(torch.nn.Linear):
    def __init__(self):
        super().__init__(1000, 1500, bias=False)
        self.logged = {}

    def log(self, name, value):
        self.logged[name] = value


def trainer(step, **more):
    metrics = {"val/iou": torch.tensor(0.25), "train/loss": torch.tensor(7.0)}
    common = {"max_steps": 8, "is_global_zero": True, "log_every_n_steps": 2, "callback_metrics": metrics}
    return SimpleNamespace(global_step=step, **common | more)


def follow(first, last, **more):
    """A run from one step to another with a validation at its end."""
    progress, model = Progress(), Model()
    progress.on_fit_start(trainer(first, **more), model)
    progress.on_train_start(trainer(first, **more), model)
    for step in range(first + 1, last + 1):
        progress.on_train_batch_end(trainer(step, **more), model, {"loss": torch.tensor(1.5)}, None, step - 1)
    progress.on_validation_end(trainer(last, **more), model)
    progress.on_train_end(trainer(last, **more), model)
    progress.on_fit_end(trainer(last, **more), model)
    return model


def test_a_run_tells_its_steps_its_loss_and_its_validations(capsys):
    model = follow(0, 8)
    told = capsys.readouterr().err
    assert told.startswith("1.5 million weights, 8 steps\n")
    assert "8/8" in told
    assert "loss 1.500" in told
    assert "step 8, validation: iou 0.250\n" in told
    assert "were done before" not in told
    assert model.logged["train/steps_per_second"] > 0


def test_a_resumed_run_counts_on_from_its_checkpoint(capsys):
    follow(3, 4)
    told = capsys.readouterr().err
    assert "8 steps, 3 of them done" in told
    assert "3/8" in told
    assert "4/8" in told


def test_a_run_without_steps_left_says_so(capsys):
    progress, model = Progress(), Model()
    progress.on_fit_start(trainer(8), model)
    progress.on_fit_end(trainer(8), model)
    assert capsys.readouterr().err == "all 8 steps were done before\n"


def test_a_validation_alone_tells_what_it_found(capsys):
    Progress().on_validation_end(trainer(0), Model())
    assert capsys.readouterr().err == "step 0, validation: iou 0.250\n"


def test_one_device_speaks_for_all(capsys):
    follow(0, 2, is_global_zero=False)
    assert capsys.readouterr().err == ""
