"""A server for tests that stands before another one and spoils its answers as real servers do, on demand and countably.

Enters: the address of a good server. Leaves: one of a server with the same content, and faults that can be switched on. The inner server
builds its links from the host it is asked for, so that everything it lists is fetched through here as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

PASSED_ON: Final = ("accept", "content-type", "range", "if-match", "if-none-match")
"""Headers of a request that reach the inner server, in small letters."""
SILENCE_S: Final = 30.0
"""The longest that a connection stays open without a word."""
TOKEN_PATH: Final = "/token/"
"""Below it signatures are given, as Planetary Computer does: `/token/ACCOUNT/CONTAINER`."""
ASSET_PATH: Final = "/assets/"
"""Below it lies what needs a signature, if there is a gate."""


@dataclass(frozen=True)
class Reply:
    """An answer on its way."""

    status: int
    """HTTP status."""
    headers: dict[str, str]
    """Headers; names in small letters."""
    body: bytes
    """What `Content-Length` counts."""
    sent: int | None = None
    """So many bytes of the body are sent; None means all."""
    ending: Literal["close", "reset", "silence"] = "close"
    """What the connection does after the last byte: ends, is torn, or stays open without a word."""
    pause_s: float = 0.0
    """Time until the first byte."""


Spoil = Callable[[Reply], Reply]


@dataclass
class Fault:
    """What is spoiled, how, and how often."""

    path: str
    """Regular expression; requests are meant whose address, followed by a blank and the range of bytes, holds it."""
    spoil: Spoil
    """Makes the bad answer of the good one."""
    times: int | None = None
    """So many answers are spoiled, then no more; None means for good."""
    every: int = 1
    """Only each so many-th request that is meant."""
    method: str = "GET"
    """Only requests with this method."""
    seen: int = 0
    """Requests that were meant so far."""
    hits: int = 0
    """Answers spoiled so far: a test that does not look at it may test nothing."""

    def apply(self, method: str, path: str, reply: Reply) -> Reply:
        """`reply`, spoiled if it is its turn."""
        if method != self.method or not re.search(self.path, path):
            return reply
        self.seen += 1
        if self.seen % self.every or (self.times is not None and self.hits >= self.times):
            return reply
        self.hits += 1
        return self.spoil(reply)


def answer(status: int, **headers: str) -> Spoil:
    """A short answer with that status and further headers, underscores in their names as hyphens."""
    more = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return lambda _: Reply(status, {"content-type": "text/plain", **more}, http.client.responses[status].encode())


def tear(reply: Reply) -> Reply:
    """The connection is reset after half of the body."""
    return dataclasses.replace(reply, sent=len(reply.body) // 2, ending="reset")


def cut(reply: Reply) -> Reply:
    """The connection ends in good order after half of the body that its length announces."""
    return dataclasses.replace(reply, sent=len(reply.body) // 2)


def hush(reply: Reply) -> Reply:
    """Half of the body, then nothing more, and the connection stays open."""
    return dataclasses.replace(reply, sent=len(reply.body) // 2, ending="silence")


def delay(seconds: float) -> Spoil:
    """The answer comes so many seconds later."""
    return lambda reply: dataclasses.replace(reply, pause_s=seconds)


def rot(first: int, last: int) -> Spoil:
    """Bytes `first` to `last` of the file are others, whichever range is asked for."""

    def spoil(reply: Reply) -> Reply:
        stated = re.match(r"bytes (\d+)-", reply.headers.get("content-range", ""))
        start = int(stated[1]) if stated else 0
        body = bytearray(reply.body)
        for place in range(max(first, start), min(last + 1, start + len(body))):
            body[place - start] ^= 0xFF
        return dataclasses.replace(reply, body=bytes(body))

    return spoil


def end_at(size: int) -> Spoil:
    """The file has only its first `size` bytes, as after an upload that broke off."""

    def spoil(reply: Reply) -> Reply:
        stated = re.match(r"bytes (\d+)-", reply.headers.get("content-range", ""))
        start = int(stated[1]) if stated else 0
        if start >= size:
            return Reply(416, {"content-range": f"bytes */{size}"}, b"")
        body = reply.body[: size - start]
        ranged = {"content-range": f"bytes {start}-{start + len(body) - 1}/{size}"} if stated else {"content-length": str(size)}
        return dataclasses.replace(reply, body=body, headers=reply.headers | ranged)

    return spoil


def edit(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    """The JSON of the answer is changed."""
    return lambda reply: dataclasses.replace(reply, body=json.dumps(change(json.loads(reply.body))).encode())


@dataclass
class Gate:
    """Lets assets be read with a signature only, each good for so many requests, and gives new ones."""

    uses: int
    """Requests that one signature is good for."""
    given: int = 0
    """Signatures given so far."""
    refused: int = 0
    """Requests refused so far."""
    is_broken: bool = False
    """Whether it refuses every signature."""
    left: dict[str, int] = field(default_factory=dict)
    """Requests left by signature."""

    def give(self) -> Reply:
        """A new signature, in the words of Planetary Computer."""
        self.given += 1
        self.left[f"s{self.given}"] = self.uses
        said = {"msft:expiry": "2099-01-01T00:00:00Z", "token": f"sv=1&sig=s{self.given}"}
        return Reply(200, {"content-type": "application/json"}, json.dumps(said).encode())

    def admits(self, path: str) -> bool:
        """Whether that address may be read; counts."""
        signature = parse_qs(urlsplit(path).query).get("sig", [""])[0]
        if self.is_broken or self.left.get(signature, 0) == 0:
            self.refused += 1
            return False
        self.left[signature] -= 1
        return True


class FaultyServer:
    """The bad server; it can be stopped and started again at the same address."""

    def __init__(self, inner: str) -> None:
        self.inner = inner
        self.faults: list[Fault] = []
        self.gate: Gate | None = None
        self.asked: list[str] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def reset(self) -> None:
        """Be good from now on, and forget what was asked."""
        self.faults, self.gate, self.asked = [], None, []

    def add(self, path: str, spoil: Spoil, **how: Any) -> Fault:
        """Spoil the answers to requests for `path` from now on; `how` are further fields of `Fault`."""
        fault = Fault(path, spoil, **how)
        self.faults.append(fault)
        return fault

    def start(self) -> None:
        """Answer, at the same port as before."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.serve(self)

            do_HEAD = do_POST = do_GET  # noqa: N815 - the names are http.server's

            def log_message(self, *parts: object) -> None:
                """Say nothing."""

        self._ended.clear()
        self._server = _QuietServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse every connection, like a server that is down."""
        self._ended.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        content = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        with self._lock:
            self.asked.append(f"{handler.command} {handler.path}")
            reply = self._guard(handler.path)
        reply = reply or self._fetch(handler, content)
        with self._lock:
            for fault in self.faults:
                reply = fault.apply(handler.command, f"{handler.path} {handler.headers.get('range', '')}".strip(), reply)
        self._send(handler, reply)

    def _guard(self, path: str) -> Reply | None:
        if self.gate is None:
            return None
        if path.startswith(TOKEN_PATH):
            return self.gate.give()
        return answer(403)(Reply(200, {}, b"")) if path.startswith(ASSET_PATH) and not self.gate.admits(path) else None

    def _fetch(self, handler: BaseHTTPRequestHandler, content: bytes) -> Reply:
        """The good answer."""
        headers = {name: value for name, value in handler.headers.items() if name.lower() in PASSED_ON}
        with contextlib.closing(http.client.HTTPConnection(urlsplit(self.inner).netloc, timeout=SILENCE_S)) as connection:
            connection.request(handler.command, handler.path, content or None, {**headers, "Host": urlsplit(self.url).netloc})
            got = connection.getresponse()
            kept = {
                name: value for name, value in got.getheaders() if name.lower() not in ("connection", "transfer-encoding", "date", "server")
            }
            return Reply(got.status, kept, got.read())

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        self._ended.wait(reply.pause_s)
        handler.close_connection = True
        with contextlib.suppress(OSError):  # the other side may have gone
            handler.send_response(reply.status)
            stated = reply.headers if handler.command == "HEAD" else {**reply.headers, "content-length": str(len(reply.body))}
            for name, value in {**stated, "connection": "close"}.items():
                handler.send_header(name, value)
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(reply.body[: reply.sent])
            if reply.ending == "silence":
                self._ended.wait(SILENCE_S)
            elif reply.ending == "reset":
                time.sleep(0.02)  # else the reset overtakes what was sent, and nothing arrives at all
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(handler.connection.detach())


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections that break are what this server is for."""


@contextlib.contextmanager
def running_faulty(inner: str) -> Iterator[FaultyServer]:
    """A server before `inner` as long as the block lasts; without faults at first."""
    server = FaultyServer(inner)
    server.start()
    try:
        yield server
    finally:
        server.stop()
