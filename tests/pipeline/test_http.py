"""Requests that outlive moods of servers, count themselves and stop at their budget."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple

import pytest
import requests
from listening import listening

from sereno.pipeline import http as nouns
from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.http import ATTEMPTS, CONNECT_ATTEMPTS, LONGEST_PAUSE_S, Budget, compute_pause, hide_secrets, make_session


class Mood(NamedTuple):
    """How a server answers one request."""

    status: int = 200
    body: bytes = b'{"whole": true}'
    headers: Mapping[str, str] = {}
    cut: bool = False
    reset: bool = False
    delay_s: float = 0.0


@contextmanager
def serving(moods: list[Mood]) -> Iterator[str]:
    """A server that answers with one mood after the other, and with the last one from then on."""
    left = list(moods)

    def respond(handler: BaseHTTPRequestHandler) -> None:
        mood = left.pop(0) if len(left) > 1 else left[0]
        time.sleep(mood.delay_s)
        handler.send_response(mood.status)
        for name, value in {"Content-Length": str(len(mood.body)), **mood.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        broken = mood.cut or mood.reset
        with suppress(BrokenPipeError):  # the client of a slow answer has gone
            handler.wfile.write(mood.body[: len(mood.body) // 2] if broken else mood.body)
        if mood.reset:  # an RST instead of an orderly end
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if broken:
            handler.close_connection = True

    with listening(respond) as address:
        yield f"{address}/thing"


def ask(address: str, *, limit: int | None = None, pause: Callable[[float], None] = lambda _: None) -> tuple[requests.Response, Budget]:
    budget = Budget(limit)
    with make_session(budget, pause) as session:
        return session.get(address), budget


@pytest.mark.parametrize(
    "moods",
    [
        [Mood(status=status) for status in (429, 500, 502, 503, 504)],
        [Mood(cut=True), Mood(cut=True)],
        [Mood(reset=True)],
        [Mood(headers={"Content-Encoding": "gzip"})],  # announced and not so: a proxy's fault
    ],
    ids=["statuses", "bodies cut short", "reset in a body", "undecodable"],
)
def test_what_may_heal_is_asked_again_and_counted(moods: list[Mood]) -> None:
    with serving([*moods, Mood()]) as address:
        response, budget = ask(address)
    assert response.status_code == 200
    assert response.json() == {"whole": True}
    assert (budget.requests, budget.retries) == (len(moods) + 1, len(moods))


def test_a_server_that_keeps_silent_is_given_up_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nouns, "TIMEOUT_S", (1.0, 0.1))
    with serving([Mood(delay_s=0.5), Mood()]) as address:
        response, budget = ask(address)
    assert response.json() == {"whole": True}
    assert budget.retries == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_what_will_not_heal_is_asked_once(status: int) -> None:
    with serving([Mood(status=status)]) as address:
        response, budget = ask(address)
    assert (response.status_code, budget.requests) == (status, 1)


def test_the_last_answer_comes_back_when_all_tries_are_spent() -> None:
    with serving([Mood(status=503)]) as address:
        response, budget = ask(address)
    assert (response.status_code, budget.requests, budget.retries) == (503, ATTEMPTS + 1, ATTEMPTS)
    with serving([Mood(cut=True)]) as address, pytest.raises(requests.exceptions.ChunkedEncodingError):
        ask(address)


def test_a_dead_address_is_given_up_soon() -> None:
    with serving([Mood()]) as address:
        pass
    pauses: list[float] = []
    with pytest.raises(requests.ConnectionError):
        ask(address, pause=pauses.append)
    assert len(pauses) == CONNECT_ATTEMPTS


def test_a_dead_proxy_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving([Mood()]) as address:
        pass
    monkeypatch.setenv("http_proxy", address)
    monkeypatch.setenv("no_proxy", "")
    budget = Budget()
    with make_session(budget, lambda _: None) as session, pytest.raises(requests.exceptions.ProxyError):
        session.get("http://stac.example.org/")
    assert budget.retries == CONNECT_ATTEMPTS


def test_pauses_double_are_spread_and_have_an_end() -> None:
    for attempt in range(12):
        pauses = [compute_pause(attempt) for _ in range(50)]
        middle = min(2.0**attempt, LONGEST_PAUSE_S)
        assert all(middle * 0.5 <= pause <= min(middle * 1.5, LONGEST_PAUSE_S) for pause in pauses) or middle == LONGEST_PAUSE_S
        assert max(pauses) <= LONGEST_PAUSE_S
        assert attempt > 6 or len(set(pauses)) > 40


def test_a_server_that_says_when_to_come_back_is_obeyed() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    pauses: list[float] = []
    moods = [Mood(429, headers={"Retry-After": text}) for text in ("17", later, "soon", "86400", "-3", "Thu, 01 Jan 1970 00:00:00 GMT")]
    with serving([*moods, Mood()]) as address:
        ask(address, pause=pauses.append)
    assert pauses[0] == 17.0
    assert 30 < pauses[1] <= 40
    assert pauses[2] < 6.1  # unreadable: our own pause
    assert pauses[3] == LONGEST_PAUSE_S
    assert all(8 <= pause <= LONGEST_PAUSE_S for pause in pauses[4:])


def test_a_budget_stops_in_the_middle_of_repetitions() -> None:
    with serving([Mood(status=503)]) as address, pytest.raises(CatalogueError, match="3 requests made, 2 of them repetitions, and no more"):
        ask(address, limit=3)


def test_a_budget_is_exact_for_many_threads() -> None:
    budget, refused = Budget(100), []

    def spend() -> None:
        for _ in range(40):
            try:
                budget.spend()
            except CatalogueError:
                refused.append(1)

    threads = [threading.Thread(target=spend) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (budget.requests, len(refused)) == (100, 100)


def test_a_stream_is_left_to_its_reader() -> None:
    with serving([Mood(body=b"0123456789", cut=True)]) as address, make_session(Budget(), lambda _: None) as session:
        response = session.get(address, stream=True)
        assert next(response.iter_content(4)) == b"0123"
        response.close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "Max retries exceeded with url: /rtc/a.tif?st=1&se=2&sig=abc%3D (Caused by x)",
            "Max retries exceeded with url: /rtc/a.tif (Caused by x)",
        ),
        ("https://store.example/a.tif?sv=1&sig=QQ==: 403", "https://store.example/a.tif: 403"),
        ("see 'https://me:secret@host/x' and\n  <https://h/y?a=b>", "see 'https://host/x' and <https://h/y>"),
        ("really? yes, a = b", "really? yes, a = b"),
    ],
)
def test_signatures_and_passwords_are_hidden(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown


def test_answers_are_json_again_after_a_break() -> None:
    body = json.dumps({"numbers": list(range(20_000))}).encode()
    with serving([Mood(body=body, reset=True), Mood(body=body)]) as address:
        response, _ = ask(address)
    assert response.json() == {"numbers": list(range(20_000))}
