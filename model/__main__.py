"""The command line: the data verbs and the model verbs under one name, and the only place where our errors become exit codes."""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sereno.model import config
from sereno.pipeline.__main__ import Settings, app
from sereno.pipeline.config import parse_settings
from sereno.pipeline.errors import ConfigError, SerenoError, describe_fault

Dataset = Annotated[Path, typer.Argument(help="Dataset manifest written by `sereno pack`.")]
Checkpoint = Annotated[Path, typer.Argument(help="Checkpoint written by `sereno train`.")]


@app.command()
def train(
    dataset: Dataset,
    output: Annotated[Path, typer.Argument(help="Checkpoint to write; history and the state to go on from lie beside it.")],
    settings: Settings = "{}",
) -> None:
    """Train a network on a dataset; a killed run goes on where it was."""
    chosen = parse_settings(config.TrainSettings, settings)
    _check_output(output)
    from sereno.model.train import train_network

    train_network(dataset, output, chosen)


@app.command()
def evaluate(
    dataset: Dataset,
    checkpoint: Checkpoint,
    output: Annotated[
        Path, typer.Argument(help="Table to write, one row per patch, method and region; summary and examples lie beside it.")
    ],
    settings: Settings = "{}",
) -> None:
    """Score a network and the baselines that need no weights, patch by patch."""
    chosen = parse_settings(config.EvaluateSettings, settings)
    _check_output(output)
    from sereno.model.evaluate import evaluate_checkpoint

    evaluate_checkpoint(dataset, checkpoint, output, chosen)


@app.command()
def predict(
    checkpoint: Checkpoint,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PAIR MASKS OUTPUT | MEASUREMENT OUTPUT",
            help="Manifests of a pair or group and of its masks, or the picture of a snapshot camera (.mat, .npy, GeoTIFF, PNG); then the "
            "GeoTIFF to write.",
        ),
    ],
    aperture: Annotated[
        Path | None, typer.Option(help="Coded aperture of a measurement (.mat, .npy, GeoTIFF, PNG). Without: the checkpoint's.")
    ] = None,
    settings: Settings = "{}",
) -> None:
    """Clear a whole scene, or make a cube of a snapshot, and write it as a cloud-optimised GeoTIFF."""
    chosen, (*inputs, output) = parse_settings(config.PredictSettings, settings), paths
    if len(inputs) not in {1, 2} or (aperture is not None and len(inputs) == 2):
        seen = " ".join(str(path) for path in paths)
        raise ConfigError(
            f"expected CHECKPOINT PAIR MASKS OUTPUT, or CHECKPOINT MEASUREMENT OUTPUT [--aperture FILE]; after it stands {seen}"
        )
    _check_output(output)
    from sereno.model.predict import predict_measurement, predict_scene

    if len(inputs) == 1:
        predict_measurement(checkpoint, inputs[0], output, chosen, aperture=aperture)
    else:
        predict_scene(checkpoint, (inputs[0], inputs[1]), output, chosen)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="Folder that holds the results of the other steps.")],
    output: Annotated[Path, typer.Argument(help="Page to write.")],
    run: Annotated[list[str] | None, typer.Option(help="Run to show; repeat for several, leave out for all that are there.")] = None,
    settings: Settings = "{}",
) -> None:
    """Write one self-contained page with pictures, maps, curves and tables."""
    chosen = parse_settings(config.ReportSettings, settings)
    _check_output(output)
    from sereno.model.report import write_report

    write_report(results, output, chosen, runs=tuple(run or ()))


@app.command()
def describe(
    network: Annotated[str | None, typer.Argument(help="A network of ours by its name, as it is without further settings.")] = None,
    settings: Annotated[
        str | None,
        typer.Option("--settings", metavar="JSON", help="Settings of training; its network is described. Without both: all of ours."),
    ] = None,
    bands: Annotated[int | None, typer.Option(min=1, help="Optical bands. Without: as many as the network is known with.")] = None,
    sar_bands: Annotated[int, typer.Option(min=0, help="SAR bands.")] = 2,
) -> None:
    """Say how large a network is, what it does, what of it is the paper's and what is ours."""
    from sereno.model.tasks import PRESETS, describe_network, find_preset, to_text

    if network is not None and settings is not None:
        raise ConfigError("NETWORK and --settings both name a network: give one of them")
    if network is None and settings is None:
        for preset in PRESETS:
            described = describe_network(preset, bands=bands, sar_bands=sar_bands)
            tasks = ", ".join(task.name for task in described.tasks)
            typer.echo(f"{described.name:14}{getattr(preset, 'size', ''):3}{described.parameters:12,} parameters  {tasks}")
        return
    chosen = find_preset(network) if network is not None else parse_settings(config.TrainSettings, settings or "{}").network
    typer.echo(to_text(describe_network(chosen, bands=bands, sar_bands=sar_bands)))


def _check_output(path: Path) -> None:
    """Refuse, before any work, a place where no file can be written."""
    if path.is_dir():
        raise ConfigError(f"OUTPUT {path} is a folder: name a file in it")
    blocked = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    if blocked is not None:
        raise ConfigError(f"OUTPUT {path} cannot be written: {blocked} is a file, not a folder")


def main() -> None:
    """Run the command line; a `SerenoError` becomes one line and its exit code, anything unforeseen keeps its traceback."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("rasterio").setLevel(logging.WARNING)  # GDAL's words come with our errors; here they would only repeat them
    try:
        app(prog_name="sereno")
    except SerenoError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        _fail(f"{error.filename or 'file system'}: {describe_fault(error)}", 6)


def _fail(message: str, code: int) -> None:
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if os.environ.get("RANK", "0") != "0":  # of processes that share the work each says what it met
        verb += f" (process {os.environ['RANK']})"
    print(f"sereno {verb}: error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    main()
