"""Which parts of the evaluator learn, and what they are computed with."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters
from torch.testing import assert_close

from rea2seg.errors import ConfigError
from tests.training.conftest import evaluator_stage
from tests.training.test_guidance import batch_of


@pytest.mark.parametrize("frozen_tower", [True, False])
def test_the_tower_learns_where_it_is_not_frozen(tokenizer, tmp_path, frozen_tower):
    stage = evaluator_stage(tokenizer, tmp_path, frozen_tower=frozen_tower)
    sees = [
        *stage.base.model.vision_tower.named_parameters(),
        *stage.base.model.multi_modal_projector.named_parameters(),
    ]
    sum(value for name, value in stage.losses(batch_of(tokenizer, "reason")).items() if name in stage.LOSS).backward()
    learns = {name for name, value in sees if value.grad is not None and value.grad.any()}
    assert learns == (set() if frozen_tower else {name for name, _ in sees})


def test_an_adapter_leaves_the_tower_frozen(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="the tower stays frozen"):
        evaluator_stage(tokenizer, tmp_path, rank=2, frozen_tower=False)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@torch.no_grad()
def test_compiled_layers_compute_the_same(tokenizer, tmp_path):
    batch = batch_of(tokenizer, "reason")
    plain, compiled = (evaluator_stage(tokenizer, tmp_path / str(flag), compiled=flag) for flag in (False, True))
    compiled.load_state_dict(plain.state_dict())
    counters.clear()
    expected = plain.losses(batch)
    assert not counters["frames"]
    assert_close(compiled.losses(batch), expected, atol=1e-4, rtol=1e-4)
    assert counters["frames"]["ok"]
