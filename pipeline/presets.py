"""What is known of each public catalogue: where it is, what its collections are called, how its files are opened, whom to believe.

A preset is one record; a new catalogue is one more entry of PRESETS. Pure tables, nothing here touches the network. Their facts come from
the providers' pages, from recorded answers and from the issues named below: none of the three could be asked live from where this was
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from sereno.pipeline.pairs import OffsetSource

S3_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""Environment variables with the two halves of an S3 key, as GDAL and every AWS tool read them."""


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
    """Options with which GDAL opens its `s3://` assets; those at `https://` are not touched by them."""
    public_buckets: Mapping[str, str] = {}
    """Buckets that everybody may read without a key, and their web address: `s3://` assets in them are opened there."""
    needs: tuple[str, ...] = ()
    """Environment variables without which its other `s3://` assets cannot be read."""
    advice: str = ""
    """What a user without them has to do."""
    charges: str = ""
    """Who pays for reading those assets, where it is not the provider."""


PRESETS: Final[Mapping[str, Preset]] = {
    # Collection 1 before the older one: its offset flags are right, those of `sentinel-2-l2a` are not always (Element84/earth-search
    # issues 66 and 71), which is why the flag is believed first and the pixels are checked. Its own COGs are public at https://. Its
    # Sentinel-1 is ground range in Sinergise's bucket, as are the L1C tiles: both `s3://`, Frankfurt, and the reader pays. No RTC.
    "earth-search": Preset(
        url="https://earth-search.aws.element84.com/v1",
        optical_collections=("sentinel-2-c1-l2a", "sentinel-2-l2a"),
        sar_collections=("sentinel-1-grd",),
        gdal={"AWS_REQUEST_PAYER": "requester", "AWS_REGION": "eu-central-1"},
        public_buckets={
            "copernicus-dem-30m": "https://copernicus-dem-30m.s3.eu-central-1.amazonaws.com",
            "copernicus-dem-90m": "https://copernicus-dem-90m.s3.eu-central-1.amazonaws.com",
            "e84-earth-search-sentinel-data": "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com",
            "sentinel-cogs": "https://sentinel-cogs.s3.us-west-2.amazonaws.com",
        },
        needs=S3_KEYS,
        advice="export the keys of an AWS account, or search SAR elsewhere: sar_catalogue: planetary-computer",
        charges="your AWS account pays for what is read (requester pays)",
    ),
    # Pixels as ESA delivers them; `raster:bands` is missing, so the product's metadata file and the baseline decide the offset. Signatures
    # are free and anonymous. Those of RTC took the key of an account until mid 2024 and, users report, no longer do (microsoft/
    # PlanetaryComputer issue 230, cordmaur/Sentinel1-Flood-Finder issue 1); a key that one still has is used.
    "planetary-computer": Preset(
        url="https://planetarycomputer.microsoft.com/api/stac/v1",
        optical_collections=("sentinel-2-l2a",),
        sar_collections=("sentinel-1-rtc", "sentinel-1-grd"),
        offset_sources=("metadata", "declared", "baseline"),
        signed_by="https://planetarycomputer.microsoft.com/api/sas/v1/token",
    ),
    # STAC 1.1, assets in JPEG 2000 at s3://eodata behind an endpoint of its own, addressed by path. Its Sentinel-1 is GRD as COG.
    "cdse": Preset(
        url="https://stac.dataspace.copernicus.eu/v1",
        optical_collections=("sentinel-2-l2a",),
        sar_collections=("sentinel-1-grd",),
        offset_sources=("metadata", "declared", "baseline"),
        gdal={"AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_HTTPS": "YES"},
        needs=S3_KEYS,
        advice="make S3 keys for a free account at https://eodata-s3keysmanager.dataspace.copernicus.eu and export both",
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
