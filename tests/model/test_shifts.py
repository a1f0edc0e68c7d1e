"""What pairs are made of, and shifts beside the true ones (see also `test_report.py`)."""

from pathlib import Path

import pytest

from sereno.model.page import Text
from sereno.model.results import read_results
from sereno.model.shifts import _sum_up_measured, describe_pairs


def test_without_a_lock_the_step_is_named(tmp_path: Path) -> None:
    (said,) = describe_pairs(read_results(tmp_path, ()))
    assert isinstance(said, Text)
    assert "run `sereno query`" in said.words


@pytest.mark.parametrize(
    ("verdicts", "words"), [(("applied", "refused"), "1 of 2 fields was not found"), (("refused",), "never laid onto")]
)
def test_fields_that_were_not_found_are_counted(verdicts: tuple[str, ...], words: str) -> None:
    records = [{"verdict": verdict, "pixel_m": 10.0, "mean_shift_px": 2.0, "sigma_px": 0.1} for verdict in verdicts]
    (said,) = _sum_up_measured("SAR", records)
    assert words in said
