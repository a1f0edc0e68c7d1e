"""The folder of real sample files, which some tests hold the code against; it is no part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def find_samples() -> Path:
    """The folder that SERENO_SAMPLES names; the test that asks is skipped where it names none."""
    folder = os.environ.get("SERENO_SAMPLES")
    if not folder:
        pytest.skip("SERENO_SAMPLES is not set to the folder of real samples")
    return Path(folder)
