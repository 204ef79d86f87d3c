import jaxtyping
import pytest
import torch

from rea2seg.masks import encode_rle
from tests.checked import with_shapes


def test_a_call_with_another_shape_fails():
    with pytest.raises(jaxtyping.TypeCheckError, match="mask"):
        encode_rle(torch.zeros(2, 3, 4, dtype=torch.bool))


def test_what_handles_arrays_is_checked_and_what_handles_words_is_not():
    checked = with_shapes()
    assert {"rea2seg.masks", "rea2seg.generator.kcore", "training.losses"} <= set(checked)
    assert "rea2seg.synth.filters" not in checked
