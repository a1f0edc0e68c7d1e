"""`benchmarks/step.py` as it is run: one small round, and what it says of wrong words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sereno.pipeline.errors import MissingError

ROOT = Path(__file__).parent.parent
WIDTH, CROP_PX = 600, 64
TCRNET = f"""
import torch

class TCRNet(torch.nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.embedding = torch.nn.Conv2d(13, {WIDTH}, 3, padding=1, bias=False)
        self.mapping = torch.nn.Conv2d({WIDTH}, 13, 3, padding=1, bias=False)

    def forward(self, optical, sar):
        return self.mapping(self.embedding(optical))
"""


def run_step(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks/step.py"), *words]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_one_round_prints_a_row_per_network_with_its_true_size_and_operations(tmp_path: Path) -> None:
    (tmp_path / "Model_TCRNet.py").write_text(TCRNET)
    words = ("--rounds", "1", "--crop", str(CROP_PX), "--variants", "naive", "fast", "--also", "unet", "--peer", f"tcrnet={tmp_path}")
    done = run_step(*words)
    assert done.returncode == 0, done.stderr
    heads, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("|")]
    table = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    assert list(table) == ["AFSST S naive", "AFSST S fast", "unet", "tcrnet"]
    assert {table[name]["parameters, M"] for name in ("AFSST S naive", "AFSST S fast")} == {"1.54"}
    products = 2 * 9 * 13 * WIDTH  # at each pixel, weights of both layers
    assert table["tcrnet"]["parameters, M"] == f"{products / 1e6:.2f}"
    assert table["tcrnet"]["GFLOP forward"] == f"{2 * products * CROP_PX**2 / 1e9:.1f}"
    assert table["tcrnet"]["tcrnet"] == table["AFSST S naive"]["AFSST S naive"] == "1.00"
    assert all(float(row["samples/s"]) > 0 and float(row["CPU-s"]) > 0 for row in table.values())


def test_wrong_words_and_missing_folders_give_one_line(tmp_path: Path) -> None:
    unknown = run_step("--peer", "nobody=/tmp")
    assert unknown.returncode == 2
    assert unknown.stderr.splitlines()[-1].endswith("ecrformer, ecrformer-light")
    missing = run_step("--crop", "16", "--variants", "--peer", f"tcrnet={tmp_path}")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (MissingError.exit_code, 1)
    assert "Model_TCRNet.py does not exist" in missing.stderr
