"""How servers are asked: waits, tries again with growing pauses and jitter, counts what it asks for, and stops at a budget.

Enters: requests of any client that works on a `requests` session. Leaves: answers read to their end, or the fault that outlived all tries.
Only reading requests are sent, so every one of them may be repeated.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from sereno.pipeline.errors import PermanentError

if TYPE_CHECKING:  # requests costs an eighth of a second, which reading local files does not need
    import requests

RETRIED: Final = (429, 500, 502, 503, 504)
"""HTTP answers that are worth another try: too many requests, and servers and gateways that are down for a moment."""
ATTEMPTS: Final = 6
"""Further tries of a request."""
CONNECT_ATTEMPTS: Final = 2
"""Further tries if no connection comes about at all."""
FIRST_PAUSE_S: Final = 1.0
"""Pause before the second try, seconds, on average; doubled before each further one."""
LONGEST_PAUSE_S: Final = 120.0
"""Longest pause, seconds, whatever a server asks for in `Retry-After`."""
TIMEOUT_S: Final = (10.0, 60.0)
"""Longest wait for a connection, and for the next piece of an answer, seconds."""
QUERY: Final = re.compile(r"\?[^\s'\"<>?]*=(?:[^\s'\"<>?)\]]*[^\s'\"<>?)\]:;,.])?")
"""The query part of an address inside a message."""
USER: Final = re.compile(r"(?<=//)[^/@\s'\"]+@")
"""User name and password inside an address."""


class Budget:
    """Counts the requests made for one purpose, and stops when they become too many; threads may share it."""

    def __init__(self, limit: int | None = None, remedy: str = "ask for less") -> None:
        self.limit, self.remedy = limit, remedy
        self.requests, self.retries = 0, 0
        self._lock = threading.Lock()

    def spend(self, *, again: bool = False) -> None:
        """Count one more request, `again` if it repeats one that failed.

        Raises:
            PermanentError: the limit is reached.
        """
        with self._lock:
            if self.limit is not None and self.requests >= self.limit:
                raise PermanentError(
                    f"{self.requests} requests made, {self.retries} of them repetitions, and no more allowed: {self.remedy}"
                )
            self.requests += 1
            self.retries += again


class PatientAdapter:
    """Stands between a `requests` session and the adapter that sends, and tries again what may heal.

    Unlike urllib3's own retries it also reads the body to its end, so that an answer that breaks off is asked for again, and it counts.
    """

    def __init__(self, inner: requests.adapters.BaseAdapter, budget: Budget, pause: Callable[[float], None] = time.sleep) -> None:
        self.inner, self.budget, self.pause = inner, budget, pause

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """The answer to `request`: any status, after all tries also one of `RETRIED`.

        Raises:
            requests.RequestException: no whole answer came in spite of all tries.
            PermanentError: the budget is spent.
        """
        if options.get("timeout") is None:
            options["timeout"] = TIMEOUT_S
        for attempt in itertools.count():
            self.budget.spend(again=attempt > 0)
            outcome = self._try(request, options)
            if isinstance(outcome, Exception):
                if attempt >= _attempts_after(outcome):
                    raise outcome
                self.pause(compute_pause(attempt))
            elif outcome.status_code not in RETRIED or attempt >= ATTEMPTS:
                return outcome
            else:
                self.pause(compute_pause(attempt, outcome.headers.get("Retry-After")))
        raise AssertionError("the loop above ends by itself")

    def _try(self, request: requests.PreparedRequest, options: dict[str, Any]) -> requests.Response | requests.RequestException:
        from requests import ConnectionError as NoConnection
        from requests import Timeout
        from requests.exceptions import ChunkedEncodingError, ContentDecodingError, SSLError

        try:
            response = self.inner.send(request, **options)
            if not options.get("stream"):
                _ = response.content  # read here, where a body that breaks off can be asked for again
        except SSLError:  # a kind of NoConnection that no patience mends
            raise
        except (NoConnection, Timeout, ChunkedEncodingError, ContentDecodingError) as error:
            return error
        return response

    def close(self) -> None:
        """Close the connections."""
        self.inner.close()


def _attempts_after(error: Exception) -> int:
    from requests import ConnectTimeout
    from requests.exceptions import ProxyError
    from urllib3.exceptions import NewConnectionError

    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return CONNECT_ATTEMPTS if isinstance(error, ConnectTimeout | ProxyError) or isinstance(reason, NewConnectionError) else ATTEMPTS


def compute_pause(attempt: int, retry_after: str | None = None) -> float:
    """Seconds to wait after the failed try number `attempt` (from 0): doubling, spread by half to each side, never less than asked for.

    `retry_after` is the header of that name: seconds, or a date (RFC 9110, section 10.2.3); what is neither is passed over. The spread
    keeps clients that failed together from coming back together (Brooker 2015, Exponential backoff and jitter).
    """
    pause = FIRST_PAUSE_S * 2.0**attempt * random.uniform(0.5, 1.5)
    return min(max(pause, _parse_retry_after(retry_after)), LONGEST_PAUSE_S)


def _parse_retry_after(text: str | None) -> float:
    if not text:
        return 0.0
    if text.strip().isdigit():
        return float(text)
    with contextlib.suppress(ValueError):  # no date either
        moment = parsedate_to_datetime(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (moment - datetime.now(UTC)).total_seconds()
    return 0.0


def make_session(budget: Budget | None = None, pause: Callable[[float], None] = time.sleep) -> requests.Session:
    """A session that tries again, counts in `budget` and gives up after `TIMEOUT_S` without a word; `pause` waits the seconds given."""
    from requests import Session

    session = Session()
    make_patient(session, budget or Budget(), pause)
    return session


def make_patient(session: requests.Session, budget: Budget, pause: Callable[[float], None]) -> None:
    """Let `session` try again and count: for clients that bring a session of their own."""
    from requests.adapters import HTTPAdapter

    for prefix in ("http://", "https://"):
        session.mount(prefix, PatientAdapter(HTTPAdapter(), budget, pause))  # type: ignore[arg-type] # it has what a session calls


def hide_secrets(text: str) -> str:
    """`text` in one line without query parts, user names and passwords of addresses: signatures do not belong into messages."""
    return USER.sub("", QUERY.sub("", " ".join(text.split())))
