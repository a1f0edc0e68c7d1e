"""Signatures that are fetched when reading, renewed in time, never shown; S3 addresses with and without keys."""

from __future__ import annotations

import json
import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import rasterio
from listening import listening
from rasterio.io import MemoryFile

from sereno.pipeline import http, signing
from sereno.pipeline.errors import CatalogueError, ConfigError, DataError, MissingError
from sereno.pipeline.presets import PRESETS
from sereno.pipeline.signing import (
    Resolver,
    S3Key,
    S3Request,
    TokenStore,
    check_credentials,
    find_resolver,
    presign,
    read_file,
    strip_signature,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
EARTH = Resolver.from_preset("https://earth-search.example/v1", PRESETS["earth-search"])
CDSE = Resolver.from_preset("https://cdse.example/v1", PRESETS["cdse"])


class Asked(NamedTuple):
    """One request that a server saw."""

    method: str
    path: str
    headers: dict[str, str]


Answer = tuple[int, bytes | dict[str, Any]]


@contextmanager
def serving(answer: Callable[[str, int], Answer]) -> Iterator[tuple[str, list[Asked]]]:
    """A server that answers with `answer(path, number of the request)`; and what it saw."""
    asked: list[Asked] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        asked.append(Asked(handler.command, handler.path, {name.lower(): value for name, value in handler.headers.items()}))
        status, said = answer(handler.path, len(asked))
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)

    with listening(respond) as address:
        yield address, asked


class Clock:
    """Time that tests move."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def to_token(expires: datetime, *, name: str = "1") -> dict[str, str]:
    """An answer in the form of Planetary Computer's."""
    moment = f"{expires:%Y-%m-%dT%H:%M:%SZ}"
    return {"msft:expiry": moment, "token": f"st=2026-03-01T11%3A00%3A00Z&se={moment.replace(':', '%3A')}&sp=rl&sr=c&sig={name}%2B%3D"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the signatures of this process go by, with a store of their own."""
    clock = Clock()
    monkeypatch.setattr(signing, "_TOKENS", TokenStore(clock, clock.wait))
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.001)
    monkeypatch.delenv(signing.KEY_VARIABLE, raising=False)
    return clock


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Surroundings without any S3 key."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(signing, "EC2_MARK", tmp_path / "none")
    return monkeypatch


# Signatures of a token service.


def test_one_signature_serves_a_container_until_shortly_before_it_runs_out(clock: Clock) -> None:
    with serving(lambda _, number: (200, to_token(clock.now + timedelta(minutes=45), name=str(number)))) as (base, asked):
        resolve = Resolver("https://api.example", f"{base}/token")
        first = [resolve(f"https://store.blob.core.windows.net/rtc/a/{name}.tif") for name in ("vv", "vh")]
        assert all(address.endswith("&sig=1%2B%3D") for address in first)
        assert [request.path for request in asked] == ["/token/store/rtc"]
        clock.wait(39 * 60)
        resolve("https://store.blob.core.windows.net/rtc/b.tif")
        assert len(asked) == 1
        clock.wait(2 * 60)  # four minutes are left
        assert "sig=2" in resolve("https://store.blob.core.windows.net/rtc/b.tif")
        resolve("https://store.blob.core.windows.net/other/b.tif")
        resolve("https://another.blob.core.windows.net/rtc/b.tif")
        assert [request.path for request in asked[1:]] == ["/token/store/rtc", "/token/store/other", "/token/another/rtc"]


def test_a_short_signature_is_renewed_at_half_its_life(clock: Clock) -> None:
    with serving(lambda _, number: (200, to_token(clock.now + timedelta(seconds=60), name=str(number)))) as (base, asked):
        resolve = Resolver("", f"{base}/token")
        for waited, count in ((0, 1), (20, 1), (15, 2)):
            clock.wait(waited)
            resolve("https://store.blob.core.windows.net/rtc/a.tif")
            assert len(asked) == count


def test_a_refused_signature_is_renewed_when_asked(clock: Clock) -> None:
    with serving(lambda _, number: (200, to_token(clock.now + timedelta(minutes=45), name=str(number)))) as (base, asked):
        resolve = Resolver("", f"{base}/token")
        href = "https://store.blob.core.windows.net/rtc/a.tif"
        assert [f"sig={number}" in resolve(href, renew=renew) for number, renew in ((1, False), (2, True), (2, False), (3, True))] == [
            True
        ] * 4
    assert len(asked) == 3


def test_signatures_that_come_too_late_are_asked_for_again(clock: Clock) -> None:
    def answer(_: str, number: int) -> Answer:  # microsoft/PlanetaryComputer issue 463: a day behind
        return 200, to_token(clock.now + (timedelta(minutes=45) if number > 2 else timedelta(days=-1)), name=str(number))

    with serving(answer) as (base, asked):
        assert "sig=3" in Resolver("", f"{base}/token")("https://store.blob.core.windows.net/rtc/a.tif")
    assert len(asked) == 3
    assert clock.now == START + timedelta(seconds=2 * signing.TOKEN_PAUSE_S)


def test_a_service_that_gives_only_what_has_run_out_is_named_with_both_times(clock: Clock) -> None:
    with (
        serving(lambda *_: (200, to_token(START - timedelta(days=1)))) as (base, asked),
        pytest.raises(CatalogueError, match=r"have run out: the last one at 2026-02-28T12:00:00Z, and it is 2026-03-01T12:00") as caught,
    ):
        Resolver("", f"{base}/token")("https://store.blob.core.windows.net/rtc/a.tif")
    assert len(asked) == signing.TOKEN_ATTEMPTS
    assert "sig=" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "life_s"),
    [
        ({"token": "se=2026-03-01T12%3A30%3A00Z&sig=a"}, 1800),  # from the signature itself
        ({"token": "?se=2026-03-01T12%3A30%3A00Z&sig=a", "msft:expiry": "2026-03-01T12:45:00Z"}, 1800),  # the earlier of two
        ({"token": "se=2026-03-01&sig=a", "msft:expiry": "2026-03-01T12:45:00Z"}, None),  # a day has begun hours ago
        ({"token": "sig=a", "msft:expiry": "soon"}, signing.ASSUMED_LIFE_S),
        ({"token": "sig=a"}, signing.ASSUMED_LIFE_S),
        ({"token": "sig=a", "msft:expiry": "2026-03-01T12:45:00"}, 2700),  # without zone: UTC
    ],
)
def test_when_a_signature_runs_out_is_read_wherever_it_stands(said: dict[str, str], life_s: float | None) -> None:
    token = signing._parse_token(dict(said), START)
    assert not token.text.startswith("?")
    assert (token.expires - START).total_seconds() == life_s or (life_s is None and token.expires < START)


def test_threads_wait_for_one_signature(clock: Clock) -> None:
    gate = threading.Event()

    def answer(*_: Any) -> Answer:
        gate.wait(5)
        return 200, to_token(clock.now + timedelta(minutes=45))

    found: list[str] = []
    with serving(answer) as (base, asked):
        resolve = Resolver("", f"{base}/token")
        threads = [
            threading.Thread(target=lambda name=name: found.append(resolve(f"https://s.blob.core.windows.net/c/{name}")))
            for name in "abcdef"
        ]
        for thread in threads:
            thread.start()
        gate.set()
        for thread in threads:
            thread.join()
    assert len(asked) == 1
    assert len(set(found)) == 6


def test_addresses_are_joined_rightly(clock: Clock) -> None:
    with serving(lambda *_: (200, to_token(clock.now + timedelta(minutes=45)))) as (base, _):
        resolve = Resolver("https://api.example", f"{base}/token")
        token = to_token(START + timedelta(minutes=45))["token"]
        host = "https://store.blob.core.windows.net/rtc"
        assert resolve(f"{host}/a.tif") == f"{host}/a.tif?{token}"
        assert resolve(f"{host}/a.tif?version=3") == f"{host}/a.tif?version=3&{token}"
        assert resolve(f"{host}/a.tif?version=3&st=1&se=2&sig=old") == f"{host}/a.tif?version=3&{token}"
        assert resolve("https://elsewhere.org/a.tif?x=1") == "https://elsewhere.org/a.tif?x=1"
        assert resolve("deep/a.tif") == "https://api.example/deep/a.tif"
    assert Resolver("https://other.example")(f"{host}/a.tif") == f"{host}/a.tif"
    assert Resolver("data")("s2/a.tif") == "data/s2/a.tif"
    assert Resolver("data")("/elsewhere/a.tif") == "/elsewhere/a.tif"


def test_a_key_is_shown_to_the_token_service_alone(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signing.KEY_VARIABLE, "mine")
    with serving(lambda path, _: (302, b"") if "away" in path else (200, to_token(clock.now + timedelta(minutes=45)))) as (base, asked):
        Resolver("", f"{base}/token")("https://store.blob.core.windows.net/rtc/a.tif")
        assert asked[0].headers["ocp-apim-subscription-key"] == "mine"
        with pytest.raises(CatalogueError, match="gives no signature"):
            Resolver("", f"{base}/away")("https://store.blob.core.windows.net/rtc/a.tif")
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        ((403, {}), "set the key in PC_SDK_SUBSCRIPTION_KEY"),
        ((401, b"sig=secret"), "set the key in PC_SDK_SUBSCRIPTION_KEY"),
        ((404, {}), "try again later"),
        ((200, b"<html>sig=secret</html>"), "try again later"),
        ((200, {}), "try again later"),
        ((200, []), "try again later"),
        ((200, {"token": ""}), "try again later"),
    ],
)
def test_a_service_that_gives_none_is_named_in_one_line(clock: Clock, answer: Any, remedy: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(lambda *_: answer) as (base, _), pytest.raises(CatalogueError, match=rf"/token/store/rtc .*signature.*{remedy}") as caught:
        Resolver("", f"{base}/token")("https://store.blob.core.windows.net/rtc/a.tif")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value) + caplog.text


def test_a_service_that_is_down_for_a_moment_is_asked_again(clock: Clock) -> None:
    with serving(lambda _, number: (503, {}) if number < 3 else (200, to_token(clock.now + timedelta(minutes=45)))) as (base, asked):
        assert "sig=1" in Resolver("", f"{base}/token")("https://store.blob.core.windows.net/rtc/a.tif")
    assert len(asked) == 3


def test_a_resolver_travels_to_workers_without_signatures_and_keys(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with serving(lambda *_: (200, to_token(clock.now + timedelta(minutes=45)))) as (base, _):
        resolve = Resolver("", f"{base}/token", EARTH.options, EARTH.public_buckets)
        resolve("https://store.blob.core.windows.net/rtc/a.tif")
        sent = pickle.dumps(resolve)
    assert pickle.loads(sent) == resolve
    assert b"sig=" not in sent
    assert b"secret" not in sent


@pytest.mark.parametrize(
    ("href", "bare"),
    [
        ("https://h/a.tif?st=1&se=2&sp=r&sv=2&sr=c&skoid=1&sktid=2&skt=3&ske=4&sks=b&skv=5&sig=abc%2B", "https://h/a.tif"),
        ("https://h/a.tif?X-Amz-Date=1&X-Amz-Signature=2&X-Amz-SignedHeaders=host&versionId=7", "https://h/a.tif?versionId=7"),
        ("https://h/a.tif?page=2&size=3", "https://h/a.tif?page=2&size=3"),
        ("s3://bucket/a.tif", "s3://bucket/a.tif"),
        ("a b/c.tif", "a b/c.tif"),
    ],
)
def test_signatures_are_taken_off_what_is_stored(href: str, bare: str) -> None:
    assert strip_signature(href) == bare


# S3.


def test_buckets_are_opened_as_their_owners_allow() -> None:
    assert EARTH("s3://sentinel-cogs/x/B04.tif") == "https://sentinel-cogs.s3.us-west-2.amazonaws.com/x/B04.tif"
    assert EARTH("s3://sentinel-s1-l1c/GRD/iw-vv.tiff") == "/vsis3/sentinel-s1-l1c/GRD/iw-vv.tiff"
    assert dict(EARTH.options)["AWS_REQUEST_PAYER"] == "requester"
    assert CDSE("s3://eodata/Sentinel-2/B02.jp2") == "/vsis3/eodata/Sentinel-2/B02.jp2"
    assert "AWS_REQUEST_PAYER" not in dict(CDSE.options)


@pytest.mark.parametrize("resolver", [EARTH, CDSE], ids=["earth-search", "cdse"])
def test_a_missing_key_is_named_with_its_remedy(no_keys: pytest.MonkeyPatch, resolver: Resolver) -> None:
    href = "s3://closed/a.tif"
    with pytest.raises(ConfigError, match=r"s3://closed .*set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment; ") as caught:
        check_credentials(resolver, ["https://h/b.tif", href])
    assert resolver.advice in str(caught.value)
    assert "\n" not in str(caught.value)
    no_keys.setenv("AWS_ACCESS_KEY_ID", "a")
    with pytest.raises(ConfigError, match="set AWS_SECRET_ACCESS_KEY in"):
        check_credentials(resolver, [href])
    no_keys.setenv("AWS_SECRET_ACCESS_KEY", "b")
    check_credentials(resolver, [href])
    no_keys.setenv("AWS_NO_SIGN_REQUEST", "yes")
    with pytest.raises(ConfigError, match="AWS_NO_SIGN_REQUEST is set: unset it"):
        check_credentials(resolver, [href])


def test_no_key_is_asked_for_where_none_is_needed(no_keys: pytest.MonkeyPatch) -> None:
    check_credentials(EARTH, ["https://h/a.tif", "s3://sentinel-cogs/a.tif", "a.tif"])
    check_credentials(Resolver("https://stac.example"), ["s3://whoever/a.tif"])
    check_credentials(Resolver("", "http://127.0.0.1:9/token"), ["https://store.blob.core.windows.net/rtc/a.tif"])  # asks nobody


def test_a_key_elsewhere_counts_where_gdal_would_find_it(no_keys: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = %b\n")
    check_credentials(EARTH, ["s3://closed/a.tif"])
    with pytest.raises(ConfigError):  # the default profile is most likely Amazon's
        check_credentials(CDSE, ["s3://eodata/a.tif"])
    no_keys.setenv("AWS_PROFILE", "default")
    check_credentials(CDSE, ["s3://eodata/a.tif"])
    assert S3Key.find() == S3Key("a", "%b")


def test_reading_at_the_user_s_cost_is_said(no_keys: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        no_keys.setenv(name, "x")
    check_credentials(CDSE, ["s3://eodata/a.tif"])
    assert not caplog.records
    check_credentials(EARTH, ["s3://sentinel-s1-l1c/a.tif"])
    assert "your AWS account pays" in caplog.text


def test_s3_signatures_agree_with_the_example_in_amazon_s_manual() -> None:
    key = S3Key("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    moment = datetime(2013, 5, 24, tzinfo=UTC)
    request = S3Request("https://examplebucket.s3.amazonaws.com/test.txt", "us-east-1", "GET", moment, life_s=86_400)
    signed = presign(request, key)
    assert parse_qs(urlsplit(signed).query)["X-Amz-Signature"] == ["aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"]


def test_web_addresses_of_buckets_follow_their_provider(no_keys: pytest.MonkeyPatch) -> None:
    assert Resolver("").to_web("s3://open/a b.tif") == "https://open.s3.us-east-1.amazonaws.com/a%20b.tif"
    no_keys.setenv("AWS_ACCESS_KEY_ID", "name")
    no_keys.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    no_keys.setenv("AWS_SESSION_TOKEN", "lent")
    cdse = urlsplit(CDSE.to_web("s3://eodata/Sentinel-2/MTD.xml"))
    assert (cdse.netloc, cdse.path) == ("eodata.dataspace.copernicus.eu", "/eodata/Sentinel-2/MTD.xml")
    earth = urlsplit(EARTH.to_web("s3://sentinel-s1-l1c/GRD/a.xml"))
    assert (earth.netloc, earth.path) == ("sentinel-s1-l1c.s3.eu-central-1.amazonaws.com", "/GRD/a.xml")
    assert parse_qs(earth.query)["x-amz-request-payer"] == ["requester"]
    assert parse_qs(earth.query)["X-Amz-Security-Token"] == ["lent"]
    assert "x-amz-request-payer" not in parse_qs(cdse.query)
    assert "secret" not in earth.query + cdse.query
    assert EARTH.to_web("s3://sentinel-cogs/a.tif") == "https://sentinel-cogs.s3.us-west-2.amazonaws.com/a.tif"


def to_tiff() -> bytes:
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=4, height=4, count=1, dtype="uint8", transform=rasterio.transform.from_origin(0, 4, 1, 1)
        ) as file:
            file.write(np.arange(16, dtype="uint8").reshape(1, 4, 4))
        return bytes(memory.read())


@pytest.mark.parametrize("pays", [True, False])
def test_gdal_signs_and_pays_by_the_options_alone(no_keys: pytest.MonkeyPatch, pays: bool) -> None:
    content = to_tiff()
    no_keys.setenv("AWS_ACCESS_KEY_ID", "name")
    no_keys.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with serving(lambda path, _: (200, content) if path.startswith("/closed/a.tif") else (404, b"")) as (base, asked):
        place = {**dict(CDSE.options), "AWS_S3_ENDPOINT": urlsplit(base).netloc, "AWS_HTTPS": "NO"}
        paying = {"AWS_REQUEST_PAYER": "requester"} if pays else {}
        resolver = Resolver("", options=tuple({**place, **paying}.items()))
        with (
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", **dict(resolver.options)),
            rasterio.open(resolver("s3://closed/a.tif")) as file,
        ):
            assert file.read(1).sum() == 120
        seen = [request.headers for request in asked if request.path.startswith("/closed/a.tif")]
        assert seen
        assert all("Credential=name/" in headers["authorization"] for headers in seen)
        assert {headers.get("x-amz-request-payer") for headers in seen} == ({"requester"} if pays else {None})
        assert read_file(resolver, "s3://closed/a.tif") == content
        assert ("x-amz-request-payer=requester" in asked[-1].path) == pays


# Small files.


def test_small_files_are_read_wherever_they_lie(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(b"<local/>")
    assert read_file(Resolver(str(tmp_path)), "a.xml") == b"<local/>"
    with pytest.raises(MissingError, match=r"b\.xml does not exist"):
        read_file(Resolver(str(tmp_path)), "b.xml")
    with serving(lambda _, number: (200, b"<web/>") if number > 1 else (503, b"")) as (base, _):
        assert read_file(Resolver(base), "a.xml") == b"<web/>"


@pytest.mark.parametrize(
    ("status", "error"), [(404, MissingError), (410, MissingError), (400, DataError), (403, CatalogueError), (500, CatalogueError)]
)
def test_what_cannot_be_read_says_whether_it_may_heal(clock: Clock, status: int, error: type[Exception]) -> None:
    with serving(lambda *_: (status, b"")) as (base, _), pytest.raises(error, match=f"HTTP {status}") as caught:
        read_file(Resolver(base), f"{base}/a.xml?st=1&sig=secret")
    assert "secret" not in str(caught.value)


def test_a_signature_refused_in_reading_is_renewed_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed: list[bool] = []

    def sign(_: Resolver, address: str, *, renew: bool) -> str:
        renewed.append(renew)
        return f"{address}?sig={len(renewed)}"

    monkeypatch.setattr(Resolver, "_sign", sign)
    with serving(lambda path, _: (200, b"<ok/>") if path.endswith("sig=2") else (403, b"")) as (base, _):
        assert read_file(Resolver(base), "a.xml") == b"<ok/>"
    assert renewed == [False, True]


def test_where_addresses_are_completed_and_signed() -> None:
    planetary = find_resolver("planetary-computer", "c")
    assert planetary.base_url == "https://planetarycomputer.microsoft.com/api/stac/v1"
    assert planetary.token_service
    assert find_resolver("https://stac.example/v1/", "c") == Resolver("https://stac.example/v1")
    with pytest.raises(MissingError, match=r"folder nowhere of c does not exist: correct pipeline\.query\.catalogue"):
        find_resolver("nowhere", "c")
