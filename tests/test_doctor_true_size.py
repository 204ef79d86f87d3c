"""The doctor on pipelines of true size: every name and shape of them, and what memory they take."""

# First: it makes torchvision, which transformers imports, usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
import pytest

from rea2seg import doctor
from tests.public.true_size import WRITERS


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_whole_pipeline_fits_name_by_name_and_one_card_of_24_gb_by_turns(name, tmp_path, capsys):
    WRITERS[name](tmp_path)
    assert doctor.main(["--config", name, "--weights", str(tmp_path), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "FAIL" not in told
    needed = {" ".join(line.split()[:-3]): float(line.split()[-3]) for line in told.splitlines() if line.endswith("GB")}
    assert needed["as configured"] > 24 > needed["--offload"] > needed["--precision nf4"]
