"""Which parts of the evaluator learn."""

import pytest

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
