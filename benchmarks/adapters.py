"""Real sample data as packed datasets, so that training, evaluation and `quality.py` run on them as on any other.

python benchmarks/adapters.py worldcereal SERIES_FOLDER OUTPUT.json [--test-site SITE]
python benchmarks/adapters.py volkov PAIRS_FOLDER OUTPUT.json [--sar real|zero|shuffled]

`worldcereal`: time series of a few fields, real clouds and real SAR; train on the other sites, test on one. Beside the dataset stands
`floors.json`: what needs no network, only other dates. `volkov`: real ground and real SAR under simulated clouds.
What was chosen, and what was refused, is in the manifest's summary.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from volkov import pack_volkov
from worldcereal import pack_worldcereal

from sereno.pipeline.errors import SerenoError


def main() -> int:
    """Read the command line and write one dataset; a fault of the data becomes one line. The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    series = kinds.add_parser("worldcereal", help="time series of sites, real clouds")
    series.add_argument("--test-site", help="site to test on; the others train")
    pictures = kinds.add_parser("volkov", help="pairs of pictures, simulated clouds")
    pictures.add_argument("--sar", choices=("real", "zero", "shuffled"), default="real", help="SAR as it is, none, or of other ground")
    for kind in (series, pictures):
        kind.add_argument("folder", type=Path, help="folder of the samples")
        kind.add_argument("output", type=Path, help="manifest to write, for example dataset.json")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if given.kind == "worldcereal":
            pack_worldcereal(given.folder, given.output, given.test_site)
        else:
            pack_volkov(given.folder, given.output, given.sar)
    except SerenoError as error:
        print(f"adapters: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
