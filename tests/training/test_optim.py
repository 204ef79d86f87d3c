import pytest
import torch
from torch import nn

from rea2seg.errors import ConfigError
from training.optim import Schedule, soap


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (70, 1.0), (85, 0.5), (99, 1 / 30), (100, 0.0), (120, 0.0)],
)
def test_the_rate_rises_holds_and_falls(step, factor):
    assert Schedule(warmup=10, decay=0.3).factor(step, total=100) == pytest.approx(factor)


def test_a_mean_of_no_steps_is_refused():
    with pytest.raises(ConfigError, match="average must be 1 or more, not 0"):
        Schedule(average=0)


def test_no_warmup_and_no_decay_is_a_constant_rate():
    assert {Schedule(warmup=0, decay=0.0).factor(step, total=10) for step in range(10)} == {1.0}


def test_only_what_wants_gradients_is_trained():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    made = soap(model.parameters(), Schedule(lr=0.5, warmup=2, decay=0.5, wd=0.1), total=4)
    assert [id(p) for group in made["optimizer"].param_groups for p in group["params"]] == [
        id(p) for p in model[1].parameters()
    ]
    rates = []
    for _ in range(4):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.25])
    assert made["lr_scheduler"]["interval"] == "step"
    assert torch.isfinite(model[1].weight).all()
