"""What is known of each public catalogue: where it is, what its collections are called, how its files are opened, whom to believe.

A preset is one record; a new catalogue is one more entry of PRESETS. Pure tables, nothing here touches the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from sereno.pipeline.pairs import OffsetSource


class Preset(NamedTuple):
    """One catalogue."""

    url: str
    """Landing page of its STAC API; empty if the user gives it."""
    optical_collections: tuple[str, ...]
    """Sentinel-2, the preferred collection first."""
    sar_collections: tuple[str, ...]
    """Sentinel-1, the preferred collection first: terrain-corrected before ground range."""
    offset_sources: tuple[OffsetSource, ...] = ("flag", "metadata", "declared", "baseline")
    """Whom to believe about the reflectance offset, the most trusted first."""
    signed_by: str = ""
    """Address that gives a signature per storage account and container; empty if assets need none."""
    gdal: Mapping[str, str] = {}
    """Options with which GDAL opens its assets."""
    needs: tuple[str, ...] = ()
    """Environment variables without which its assets cannot be read."""
    advice: str = ""
    """What a user without them has to do."""


PRESETS: Final[Mapping[str, Preset]] = {
    "earth-search": Preset(
        url="https://earth-search.aws.element84.com/v1",
        optical_collections=("sentinel-2-c1-l2a", "sentinel-2-l2a"),
        sar_collections=("sentinel-1-grd",),
        gdal={"AWS_REQUEST_PAYER": "requester"},
    ),
    "planetary-computer": Preset(
        url="https://planetarycomputer.microsoft.com/api/stac/v1",
        optical_collections=("sentinel-2-l2a",),
        sar_collections=("sentinel-1-rtc", "sentinel-1-grd"),
        signed_by="https://planetarycomputer.microsoft.com/api/sas/v1/token",
    ),
    "cdse": Preset(
        url="https://stac.dataspace.copernicus.eu/v1",
        optical_collections=("sentinel-2-l2a",),
        sar_collections=("sentinel-1-grd",),
        gdal={"AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_HTTPS": "YES"},
        needs=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        advice="make S3 keys for a Copernicus Data Space account and export both",
    ),
    "local": Preset(
        url="",
        optical_collections=("sentinel-2-c1-l2a", "sentinel-2-l2a", "sentinel-2-l1c"),
        sar_collections=("sentinel-1-rtc", "sentinel-1-grd"),
    ),
}
"""By name. `local` stands for a folder and for any API that is not named here."""


def find_preset(address: str) -> Preset:
    """The preset of that name, or whose API lies on the same host as the URL `address`, else `local`."""
    if address in PRESETS:
        return PRESETS[address]
    host = urlsplit(address).netloc
    return next((preset for preset in PRESETS.values() if host and urlsplit(preset.url).netloc == host), PRESETS["local"])
