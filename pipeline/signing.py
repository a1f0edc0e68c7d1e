"""Addresses as they can be read now: absolute, and signed where the provider asks for that.

Enters: an address from a lock. Leaves: what GDAL or requests open. Signatures live minutes, so they are made when reading, cached until
they run out, and never stored.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.http import TIMEOUT_S, make_retry

SIGNED_HOST: Final = ".blob.core.windows.net"
"""Assets on these hosts need the signature."""


@dataclass(frozen=True)
class Resolver:
    """Turns addresses of one catalogue into addresses that can be read; small and picklable, so that workers can have it."""

    base_url: str
    """URL of the landing page, or a folder; relative addresses are completed by it."""
    token_service: str = ""
    """Address that gives a signature per storage account and container; empty if none is needed."""
    options: tuple[tuple[str, str], ...] = ()
    """Options with which GDAL opens the assets."""

    def __call__(self, href: str, *, renew: bool = False) -> str:
        """`href` absolute and signed; `renew` asks for a new signature even if the last one has not run out.

        Raises:
            CatalogueError: no signature is given.
        """
        if not urlsplit(href).scheme:
            return f"{self.base_url}/{href}"
        parts = urlsplit(href)
        if not self.token_service or not parts.netloc.endswith(SIGNED_HOST):
            return href
        account, container = parts.netloc.removesuffix(SIGNED_HOST), parts.path.split("/")[1]
        address = f"{self.token_service}/{account}/{container}"
        if renew:
            _read_token.cache_clear()
        return f"{href}?{_read_token(address)}"


@functools.lru_cache
def _read_token(address: str) -> str:
    import requests
    from requests.adapters import HTTPAdapter

    with requests.Session() as session:
        session.mount("https://", HTTPAdapter(max_retries=make_retry()))
        try:
            answer = session.get(address, timeout=TIMEOUT_S)
            answer.raise_for_status()
            return str(answer.json()["token"])
        except (requests.RequestException, KeyError) as error:
            raise CatalogueError(f"{address} gives no signature for reading assets ({error}): try again later") from error
