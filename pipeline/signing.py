"""Addresses as they can be read now: absolute, and signed where the provider asks for that.

Enters: an address from a lock. Leaves: what GDAL or requests open. Signatures live minutes, so they are made when reading, kept until
shortly before they run out, and never stored or shown. `check_credentials` says before anything is read which key is missing.
"""

from __future__ import annotations

import configparser
import hashlib
import hmac
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from sereno.pipeline.errors import CatalogueError, ConfigError, DataError, MissingError
from sereno.pipeline.http import Budget, hide_secrets, make_session
from sereno.pipeline.presets import S3_KEYS, Preset, find_preset

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

SIGNED_HOST: Final = ".blob.core.windows.net"
"""Assets on these hosts need the signature of a token service, if the catalogue has one."""
KEY_VARIABLE: Final = "PC_SDK_SUBSCRIPTION_KEY"
"""Environment variable with the optional key for longer signatures; the name is that of Planetary Computer's own client."""
KEY_HEADER: Final = "Ocp-Apim-Subscription-Key"
"""Header in which the token service expects it."""
RENEW_BEFORE_S: Final = 300.0
"""A signature is renewed so long before it runs out, seconds: reads under way have to end with it. Short-lived ones at half their life."""
ASSUMED_LIFE_S: Final = 600.0
"""Life of a signature that does not say when it runs out, seconds."""
LEAST_LIFE_S: Final = 15.0
"""A new signature that runs out sooner than this, seconds, counts as given out too late (microsoft/PlanetaryComputer issue 463)."""
TOKEN_ATTEMPTS: Final = 4
"""How often a token service is asked if what it gives has run out."""
TOKEN_PAUSE_S: Final = 2.0
"""Pause before it is asked again, seconds."""
PRESIGNED_S: Final = 900
"""Life of an address that we sign with an S3 key, seconds."""
SIGNATURE_PARTS: Final = re.compile(
    r"s[iptevrs]|sig|spr|srt|sdd|ses|sip|scid|suoid|saoid|sk[a-z]{0,4}|x-amz-\w+(-\w+)*|awsaccesskeyid|signature|expires"
)
"""Query parameters, in small letters, that make a signature of Azure or of S3."""
EC2_MARK: Final = Path("/sys/devices/virtual/dmi/id/sys_vendor")
"""Says `Amazon EC2` on machines that get their keys from Amazon itself."""


@dataclass(frozen=True)
class Resolver:
    """Turns addresses of one catalogue into addresses that can be read; small and picklable, so that workers can have it.

    It holds no signature and no key: signatures are kept per process, keys stay in the environment.
    """

    base_url: str
    """URL of the landing page, or a folder; relative addresses are completed by it."""
    token_service: str = ""
    """Address that gives a signature per storage account and container; empty if none is needed."""
    options: tuple[tuple[str, str], ...] = ()
    """Options with which GDAL opens the assets; they concern what lies at `/vsis3/` only."""
    public_buckets: tuple[tuple[str, str], ...] = ()
    """S3 buckets that need no key, and their web address."""
    needs: tuple[str, ...] = ()
    """Environment variables without which other `s3://` assets cannot be read; empty if that is not known."""
    advice: str = ""
    """What a user without them has to do."""
    charges: str = ""
    """Who pays for reading `s3://` assets, where it is not the provider."""

    @classmethod
    def from_preset(cls, base_url: str, preset: Preset) -> Resolver:
        """The resolver of a catalogue of which `preset` is known."""
        options, buckets = (tuple(sorted(mapping.items())) for mapping in (preset.gdal, preset.public_buckets))
        return cls(base_url, preset.signed_by, options, buckets, preset.needs, preset.advice, preset.charges)

    def __call__(self, href: str, *, renew: bool = False) -> str:
        """`href` as GDAL opens it: absolute, signed, and `/vsis3/` for `s3://`; a renewed signature if the last one was refused.

        Raises:
            CatalogueError: no signature is given, or only such as have run out.
        """
        address = self.to_address(href)
        if address.startswith("s3://"):
            return f"/vsis3/{address.removeprefix('s3://')}"
        return self._sign(address, renew=renew)

    def to_web(self, href: str, *, renew: bool = False, method: str = "GET") -> str:
        """`href` as requests open it: like a call, but `s3://` becomes a web address signed with the S3 key for `method`.

        Without a key it is left unsigned, which public buckets answer.

        Raises:
            CatalogueError: no signature is given, or only such as have run out.
        """
        address = self.to_address(href)
        return _presign(address, dict(self.options), method) if address.startswith("s3://") else self._sign(address, renew=renew)

    def to_address(self, href: str) -> str:
        """`href` with the place that it is relative to, not signed; by its web address where it lies in a public bucket."""
        parts = urlsplit(href)
        if parts.scheme == "s3":
            root = dict(self.public_buckets).get(parts.netloc)
            return f"{root}{quote(parts.path)}" if root else href
        return href if parts.scheme or href.startswith("/") else f"{self.base_url}/{href}"

    def _sign(self, address: str, *, renew: bool) -> str:
        parts = urlsplit(address)
        if not self.token_service or not parts.netloc.endswith(SIGNED_HOST):
            return address
        account, container = parts.netloc.removesuffix(SIGNED_HOST), parts.path.split("/")[1]
        token = _TOKENS.read(f"{self.token_service}/{account}/{container}", renew=renew)
        bare = strip_signature(address)
        return f"{bare}{'&' if urlsplit(bare).query else '?'}{token}"


def find_resolver(address: str, collection: str) -> Resolver:
    """What makes the addresses of assets readable; `address` is a preset, the URL of an API, or a folder; `collection` is for messages.

    Files of a folder are read from the folder: no server is needed, and messages name the file.

    Raises:
        MissingError: the folder is not there.
    """
    preset = find_preset(address)
    url = address if urlsplit(address).scheme else preset.url
    if url:
        return Resolver.from_preset(url.rstrip("/"), preset)
    if not Path(address).is_dir():
        raise MissingError(
            f"folder {address} of {collection} does not exist: "
            "correct pipeline.query.catalogue, sar_catalogue or dem_catalogue, and run `sereno query` again"
        )
    return Resolver(address)


class Token(NamedTuple):
    """One signature."""

    text: str
    """Query part that is appended to an address."""
    expires: datetime
    """When it runs out, UTC."""
    fetched: datetime
    """When it was given, UTC."""

    def is_stale(self, now: datetime) -> bool:
        """Whether it is time for a new one."""
        life = self.expires - self.fetched
        return now >= self.expires - min(timedelta(seconds=RENEW_BEFORE_S), life / 2)


class TokenStore:
    """The signatures of this process, fetched when needed; threads that need the same one wait for one request."""

    def __init__(
        self,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clock, self.pause = clock, pause
        self._tokens: dict[str, Token] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def read(self, address: str, *, renew: bool = False) -> str:
        """The signature that the token service at `address` gives, as the query part of an address.

        `renew` asks for a new one even if the last one should still be good, unless another thread got a new one in the meantime.

        Raises:
            CatalogueError: the service gives none, or only such as have run out.
        """
        asked = self.clock()
        with self._lock:
            own = self._locks.setdefault(address, threading.Lock())
        with own:
            token = self._tokens.get(address)
            if token is None or token.is_stale(self.clock()) or (renew and token.fetched <= asked):
                token = self._tokens[address] = self._fetch(address)
            return token.text

    def _fetch(self, address: str) -> Token:
        with make_session(pause=self.pause) as session:
            for attempt in range(TOKEN_ATTEMPTS):
                if attempt:
                    self.pause(TOKEN_PAUSE_S)
                token = _parse_token(_ask_token(session, address), self.clock())
                if token.expires - token.fetched >= timedelta(seconds=LEAST_LIFE_S):
                    return token
        raise CatalogueError(
            f"{address} gives only signatures that have run out: the last one at {token.expires:%Y-%m-%dT%H:%M:%SZ}, "
            f"and it is {token.fetched:%Y-%m-%dT%H:%M:%SZ} on this machine; set its clock right, or try again later"
        )


_TOKENS: Final = TokenStore()


def _ask_token(session: requests.Session, address: str) -> dict[str, object]:
    from requests import RequestException

    key = os.environ.get(KEY_VARIABLE, "")
    try:
        # With a key no redirect is followed: requests would show the key to any host that an answer names.
        answer = session.get(address, headers={KEY_HEADER: key} if key else {}, allow_redirects=not key)
        answer.raise_for_status()
        said = answer.json()
    except (RequestException, ValueError) as error:
        response = getattr(error, "response", None)
        denied = response is not None and response.status_code in (401, 403)
        remedy = f"{'check' if key else 'set'} the key in {KEY_VARIABLE}" if denied else "try again later"
        raise CatalogueError(
            f"{address} gives no signature for reading assets ({hide_secrets(str(error))}): {remedy}"
        ) from None  # the cause would show the answer
    if not isinstance(said, dict) or not said.get("token"):
        raise CatalogueError(f"{address} answers without a signature: try again later")
    return said


def _parse_token(said: dict[str, object], now: datetime) -> Token:
    """The signature of an answer; it runs out at the earliest moment that the answer or the signature itself states."""
    text = str(said["token"]).lstrip("?")
    stated = [str(said.get("msft:expiry") or ""), *(value for name, value in parse_qsl(text) if name == "se")]
    moments = [moment for moment in map(_parse_moment, stated) if moment is not None]
    return Token(text, min(moments, default=now + timedelta(seconds=ASSUMED_LIFE_S)), now)


def _parse_moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def strip_signature(href: str) -> str:
    """`href` without the query parameters of a signature (Azure, S3), others kept: some APIs sign what they list."""
    parts = urlsplit(href)
    kept = [piece for piece in parts.query.split("&") if piece and not SIGNATURE_PARTS.fullmatch(piece.partition("=")[0].lower())]
    return parts._replace(query="&".join(kept)).geturl()


def check_credentials(resolver: Resolver, hrefs: Iterable[str]) -> None:
    """Check that the keys which reading `hrefs` takes are there, so that a run stops before its first byte instead of after hours.

    A key counts as there where GDAL would find it: in the environment, in a profile, on a machine or in a container that has a role. Logs
    a warning where reading is charged to the user.

    Raises:
        ConfigError: a key is missing; the message names the variable and says what to do.
    """
    closed = [href for href in hrefs if resolver(href).startswith("/vsis3/")] if resolver.needs else []
    if not closed:
        return
    bucket = f"s3://{urlsplit(closed[0]).netloc}"
    if os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "ON", "1"):
        raise ConfigError(f"{bucket} is not read without a key, but AWS_NO_SIGN_REQUEST is set: unset it")
    missing = [name for name in resolver.needs if not os.environ.get(name)]
    if missing and not _has_other_source(own_endpoint="AWS_S3_ENDPOINT" in dict(resolver.options)):
        raise ConfigError(f"{bucket} is not read without a key: set {' and '.join(missing)} in the environment; {resolver.advice}")
    if resolver.charges:
        logger.warning("%s: %s", bucket, resolver.charges)


def _has_other_source(*, own_endpoint: bool) -> bool:
    """Whether GDAL finds an S3 key elsewhere; for a provider who is not Amazon only a profile named on purpose can hold it."""
    names = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"]
    if own_endpoint:
        return any(os.environ.get(name) for name in names)
    names += ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"]
    on_ec2 = EC2_MARK.is_file() and "Amazon EC2" in EC2_MARK.read_text()
    return on_ec2 or (Path.home() / ".aws" / "credentials").is_file() or any(os.environ.get(name) for name in names)


class S3Key(NamedTuple):
    """What S3 requests are signed with."""

    name: str
    """Access key id."""
    secret: str
    """Secret access key."""
    session: str = ""
    """Session token of a key that is lent for a while; else empty."""

    @classmethod
    def find(cls) -> S3Key | None:
        """The key in the environment, else that of the profile in the credentials file; None if there is neither."""
        name, secret = (os.environ.get(variable, "") for variable in S3_KEYS)
        if name and secret:
            return cls(name, secret, os.environ.get("AWS_SESSION_TOKEN", ""))
        path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
        profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
        file = configparser.ConfigParser(interpolation=None)
        file.read(path)
        if not file.has_option(profile, "aws_access_key_id") or not file.has_option(profile, "aws_secret_access_key"):
            return None
        held = file[profile]
        return cls(held["aws_access_key_id"], held["aws_secret_access_key"], held.get("aws_session_token", ""))


def _presign(href: str, options: dict[str, str], method: str) -> str:
    """The `s3://` address `href` as a web address, signed if there is a key."""
    parts = urlsplit(href)
    region = options.get("AWS_REGION") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = options.get("AWS_S3_ENDPOINT") or f"s3.{region}.amazonaws.com"
    scheme = "https" if options.get("AWS_HTTPS", "YES") == "YES" else "http"
    by_path = options.get("AWS_VIRTUAL_HOSTING") == "FALSE"
    host = endpoint if by_path else f"{parts.netloc}.{endpoint}"
    path = f"/{parts.netloc}{parts.path}" if by_path else parts.path
    address, key = f"{scheme}://{host}{quote(path)}", S3Key.find()
    if key is None:
        return address
    extra = {"x-amz-request-payer": options["AWS_REQUEST_PAYER"]} if "AWS_REQUEST_PAYER" in options else {}
    return presign(S3Request(address, region, method, datetime.now(UTC), extra), key)


class S3Request(NamedTuple):
    """A request that S3 shall answer for whoever knows its address."""

    address: str
    """Web address, without a query part."""
    region: str
    """Region of the bucket."""
    method: str
    """HTTP method; a signature is good for one alone."""
    moment: datetime
    """When it is signed, UTC."""
    extra: Mapping[str, str] = {}
    """Further parameters of the query part."""
    life_s: int = PRESIGNED_S
    """How long the signature is good, seconds."""


def presign(request: S3Request, key: S3Key) -> str:
    """The request's address with a signature in its query part.

    AWS Signature Version 4 by query parameters (AWS, Authenticating Requests: Using Query Parameters); tested on the example given there.
    """
    parts, day, stamp = urlsplit(request.address), f"{request.moment:%Y%m%d}", f"{request.moment:%Y%m%dT%H%M%SZ}"
    scope = f"{day}/{request.region}/s3/aws4_request"
    asked = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{key.name}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(request.life_s),
        "X-Amz-SignedHeaders": "host",
        **({"X-Amz-Security-Token": key.session} if key.session else {}),
        **request.extra,
    }
    query = urlencode(sorted(asked.items()), quote_via=quote, safe="")
    canonical = f"{request.method}\n{parts.path}\n{query}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signer = f"AWS4{key.secret}".encode()
    for part in (day, request.region, "s3", "aws4_request"):
        signer = hmac.digest(signer, part.encode(), "sha256")
    return f"{request.address}?{query}&X-Amz-Signature={hmac.new(signer, text.encode(), 'sha256').hexdigest()}"


def read_file(resolver: Resolver, href: str, budget: Budget | None = None) -> bytes:
    """The whole content of a small file (metadata, annotation) at `href`: local, on the web, signed or in a bucket.

    A signature that is refused is renewed once. Requests and repetitions are counted in `budget`, also where no content comes in the end.

    Raises:
        MissingError: there is no such file.
        DataError: the server refuses it as something else than missing, for good.
        CatalogueError: no answer in spite of all tries, or reading is not allowed.
    """
    if not urlsplit(resolver.to_address(href)).scheme:
        path = Path(resolver.to_address(href))
        if not path.is_file():
            raise MissingError(f"file {path} does not exist: fetch it again, or name its item in pipeline.query.exclude")
        return path.read_bytes()
    with make_session(budget) as session:
        answer = _get(session, resolver.to_web(href))
        if answer.status_code in (401, 403):
            answer = _get(session, resolver.to_web(href, renew=True))
    return _check_answer(answer, strip_signature(href)).content


def _get(session: requests.Session, address: str) -> requests.Response:
    from requests import RequestException

    try:
        return session.get(address)
    except RequestException as error:
        raise CatalogueError(f"{hide_secrets(address)} does not answer ({hide_secrets(str(error))}): try again later") from None


def _check_answer(answer: requests.Response, place: str) -> requests.Response:
    status = answer.status_code
    if status in (404, 410):
        raise MissingError(
            f"{place} is not there (HTTP {status}): the provider has lost or moved it; name its item in pipeline.query.exclude"
        )
    if status in (401, 403):
        raise CatalogueError(
            f"{place} may not be read (HTTP {status}): check the keys in the environment, and whether the account is allowed to"
        )
    if status == 429 or status >= 500:
        raise CatalogueError(f"{place} cannot be read now (HTTP {status}): try again later")
    if status >= 400:
        raise DataError(f"{place} is refused (HTTP {status}): name its item in pipeline.query.exclude")
    return answer
