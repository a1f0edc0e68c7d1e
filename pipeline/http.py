"""How requests to catalogues are made: waits, retries with growing pauses and jitter, and what is worth another try."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from urllib3 import Retry

RETRIED: Final = (429, 500, 502, 503, 504)
"""HTTP answers that are worth another try: too many requests, and servers and gateways that are down for a moment."""
ATTEMPTS: Final = 6
"""Further tries of a request; the pauses between them double from one second on, plus jitter."""
CONNECT_ATTEMPTS: Final = 2
"""Further tries if nothing listens at all."""
TIMEOUT_S: Final = (10.0, 60.0)
"""Longest wait for a connection, and for the next piece of an answer."""


def make_retry() -> Retry:
    """The retry rule of every request to a catalogue: all of them only read, so POST may be repeated too."""
    from urllib3 import Retry

    return Retry(
        total=ATTEMPTS, connect=CONNECT_ATTEMPTS, status_forcelist=RETRIED, allowed_methods=None, backoff_factor=0.5, backoff_jitter=0.5
    )
