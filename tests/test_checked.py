import jaxtyping
import pytest
import torch

from rea2seg.masks import encode_rle
from tests.checked import modules


def test_a_call_with_another_shape_fails():
    with pytest.raises(jaxtyping.TypeCheckError, match="mask"):
        encode_rle(torch.zeros(2, 3, 4, dtype=torch.bool))


def test_all_is_checked_but_the_small_functions_of_scenes():
    checked = set(modules())
    assert {"rea2seg.pipeline", "rea2seg.generator.kcore", "rea2seg.synth.render", "training.losses"} <= checked
    assert "rea2seg.synth.filters" not in checked
