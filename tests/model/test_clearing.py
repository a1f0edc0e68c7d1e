"""The verdict on cloud removal never hides a baseline that wins (see also `test_report.py`)."""

from typing import Any

import pytest

from sereno.model.clearing import _judge


def make_difference(mean: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {metric: {"by_block": {"mean": mean, "low": low, "high": high}} for metric in ("psnr", "ssim")}


@pytest.mark.parametrize(
    ("interval", "words", "tone"),
    [
        ((1.0, 0.5, 1.5), "It beats the smooth fill by 1.00 dB PSNR and 1.0000 SSIM.", "good"),
        ((1.0, -0.5, 1.5), "It is ahead of the smooth fill by 1.00 dB PSNR and 1.0000 SSIM, but not clearly", "plain"),
        ((1.0, None, None), "but not clearly", "plain"),
        ((-1.0, -1.5, -0.5), "It is behind the smooth fill by 1.00 dB PSNR (95 % interval -1.50 to -0.50)", "bad"),
    ],
)
def test_a_difference_is_called_what_its_interval_allows(interval: tuple[Any, ...], words: str, tone: str) -> None:
    said, found = _judge({"fill": make_difference(*interval)})
    assert words in said
    assert found == tone


@pytest.mark.parametrize(("name", "words"), [("dates", "behind the clear dates around it by"), ("new", "behind the new by")])
def test_no_baseline_is_hidden_whatever_it_is_called(name: str, words: str) -> None:
    said, tone = _judge({"region": "cloudy", "fill": make_difference(1.0, 0.5, 1.5), name: make_difference(-1.0, -1.5, -0.5)})  # type: ignore[dict-item]
    assert words in said
    assert tone == "bad"
