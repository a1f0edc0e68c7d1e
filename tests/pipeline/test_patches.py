"""The contract of patches."""

import pytest
from pydantic import ValidationError

from sereno.pipeline.patches import CLOUDY_FROM, MASK_CHANNELS, PATCH_ARRAYS, SPLITS, PatchRecord

RECORD = {
    "id": "west/p1/r8-c8",
    "area": "west",
    "pair": "p1",
    "block": "EPSG:32632/1/2",
    "crs": "EPSG:32632",
    "bounds_m": (0.5, 1, 2, 3),
    "row": 8,
    "col": 8,
    "valid_share": 1,
    "cloud_input_share": 0.1,
    "cloud_target_share": 0,
    "sar_gap_days": -0.1,
    "clear_gap_days": 5,
}


def test_a_record_survives_json() -> None:
    record = PatchRecord.model_validate(RECORD)
    assert record.split is None
    assert record.position is None
    assert PatchRecord.model_validate_json(record.to_json()) == record


@pytest.mark.parametrize("change", [{"split": "training"}, {"bounds_m": (1, 2)}, {"unknown": 1}])
def test_a_record_with_a_fault_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        PatchRecord.model_validate({**RECORD, **change})


def test_cloud_begins_at_one_half() -> None:
    assert (CLOUDY_FROM - 1) / 255 < 0.5 <= CLOUDY_FROM / 255


def test_names_are_unique() -> None:
    for names in (MASK_CHANNELS, PATCH_ARRAYS, SPLITS):
        assert len(set(names)) == len(names)


def test_days_to_other_dates_are_written_where_there_are_some() -> None:
    assert "gaps_days" not in PatchRecord.model_validate(RECORD).to_json()
    record = PatchRecord.model_validate({**RECORD, "gaps_days": {"before": -5, "after": 20.5}})
    assert PatchRecord.model_validate_json(record.to_json()).gaps_days == {"before": -5.0, "after": 20.5}
