"""Of an image the part that is needed is read, and a lost table is named."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import safe_product

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.sensors.ground_range import ItemFiles, NamedLossError, find_window, read_tables
from sereno.pipeline.sensors.sentinel1_safe import read_product
from sereno.pipeline.signing import Resolver


def test_only_the_part_of_an_image_under_the_area_is_read() -> None:
    rows, columns = np.array([[100.2, 140.0]]), np.array([[-30.0, 50.5]])
    window = find_window((rows, columns), (1000, 2000), (2, 3))
    assert window is not None
    assert window.toslices() == (slice(98, 143), slice(0, 55))
    assert find_window((rows + 5000, columns), (1000, 2000), (2, 3)) is None
    assert find_window((rows * np.nan, columns), (1000, 2000), (2, 3)) is None


def test_a_damaged_table_is_a_loss_under_its_own_name(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path)
    item, _ = read_product(root)
    path = tmp_path / item.assets["calibration-VH"].href
    path.write_text(path.read_text()[:500])
    files = ItemFiles(item, IngestSettings(attempts=1), Resolver(str(tmp_path)))
    assert read_tables(files, "VV").noise is not None
    with pytest.raises(NamedLossError, match="not valid XML") as loss:
        read_tables(files, "VH")
    assert (loss.value.name, loss.value.status) == ("calibration-VH", "unreadable")


def test_a_loss_keeps_its_name_and_words_on_the_way_from_a_worker() -> None:
    back = pickle.loads(pickle.dumps(NamedLossError("VV", "missing", "HTTP 404")))
    assert (type(back), back.name, back.status, back.words) == (NamedLossError, "VV", "missing", "HTTP 404")
