"""The data half of the command line: a sub-command per verb, and those that only look; each imports only what it uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sereno.pipeline import config
from sereno.pipeline.errors import ConfigError, MissingError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Settings = Annotated[
    str, typer.Option("--settings", metavar="JSON", help="Settings of the step as JSON; what is left out has its default.")
]
Output = Annotated[Path, typer.Argument(help="Manifest to write; the store lies beside it.")]
LockFile = Annotated[Path, typer.Argument(help="Lock written by `sereno query`.")]


@app.command()
def simulate(output: Output, settings: Settings = "{}") -> None:
    """Make a small world with known truth: product files, a catalogue, and what lies under the clouds."""
    from sereno.pipeline.simulate import simulate_world

    simulate_world(output, config.parse_settings(config.SimulateSettings, settings))


@app.command()
def query(
    output: Annotated[Path, typer.Argument(help="Lock to write.")],
    area: Annotated[str, typer.Option(help="Name of the area.")],
    settings: Settings = "{}",
) -> None:
    """Search scenes of one area, pair SAR, cloudy and clear ones, and write the lock."""
    from sereno.pipeline.query import query_pairs

    query_pairs(area, output, config.parse_settings(config.QuerySettings, settings))


@app.command()
def plan(
    locks: Annotated[list[Path], typer.Argument(metavar="LOCK...", help="Locks written by `sereno query`.")],
    settings: Settings = "{}",
    config_file: Annotated[Path | None, typer.Option("--config", help="Config of the flow, to take the settings from.")] = None,
) -> None:
    """Say what a run from locks will fetch, make and keep, before anything is fetched."""
    if config_file is not None and settings != "{}":
        raise ConfigError(f"--settings and --config {config_file} both say how to plan: give one of them")
    from sereno.pipeline.estimate import describe_plans, estimate_area
    from sereno.pipeline.pairs import Lock

    chosen = config.parse_settings(config.PlanSettings, settings) if config_file is None else _read_config(config_file).plan
    for line in describe_plans([estimate_area(Lock.read(lock), chosen) for lock in locks]):
        typer.echo(line)


def _read_config(path: Path) -> config.PipelineSettings:
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from None
    section = values.get("pipeline") if isinstance(values, dict) else None
    return config.load_settings(config.PipelineSettings, section, where=f"{path}, section 'pipeline'")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="Lock.")],
    second: Annotated[Path, typer.Argument(help="Another lock of the same area, for example of a later search.")],
) -> None:
    """Say how two locks differ; the exit code is 0 if they say the same and 1 if not."""
    from sereno.pipeline.comparison import compare_locks, count_changes
    from sereno.pipeline.pairs import Lock

    changes = compare_locks(Lock.read(first), Lock.read(second))
    for change in changes:
        typer.echo(change.describe())
    typer.echo(", ".join(f"{count} x {what}" for what, count in count_changes(changes).items()) or "no difference")
    raise typer.Exit(1 if changes else 0)


@app.command()
def ingest(
    lock: LockFile,
    scene: Annotated[str, typer.Argument(help="Scene id in the lock.")],
    output: Output,
    settings: Settings = "{}",
) -> None:
    """Read one scene: calibrated, offset removed, validity apart from values."""
    from sereno.pipeline.ingest import ingest_scene

    ingest_scene(lock, scene, output, config.parse_settings(config.IngestSettings, settings))


@app.command()
def align(
    lock: LockFile,
    pair: Annotated[str, typer.Argument(help="Pair id in the lock.")],
    scenes: Annotated[tuple[Path, Path, Path], typer.Argument(metavar="SAR CLOUDY CLEAR", help="Scene manifests.")],
    output: Output,
    settings: Settings = "{}",
) -> None:
    """Lay the scenes of one pair on one grid, with the measured shift of SAR taken out or refused."""
    from sereno.pipeline.align import align_pair

    align_pair((lock, pair), scenes, output, config.parse_settings(config.AlignSettings, settings))


@app.command()
def mask(
    pair: Annotated[Path, typer.Argument(help="Pair manifest.")],
    output: Output,
    settings: Settings = "{}",
) -> None:
    """Find cloud and shadow of a pair's input and target."""
    from sereno.pipeline.mask import mask_pair

    mask_pair(pair, output, config.parse_settings(config.MaskSettings, settings))


@app.command()
def patch(
    pair: Annotated[Path, typer.Argument(help="Pair manifest.")],
    masks: Annotated[Path, typer.Argument(help="Mask manifest.")],
    output: Output,
    settings: Settings = "{}",
) -> None:
    """Cut a masked pair into windows worth keeping."""
    from sereno.pipeline.patch import patch_pair

    patch_pair(pair, masks, output, config.parse_settings(config.PatchSettings, settings))


@app.command()
def pack(
    patches: Annotated[
        list[Path], typer.Argument(metavar="PATCHES... OUTPUT", help="Patch manifests, then the dataset manifest to write.")
    ],
    settings: Settings = "{}",
) -> None:
    """Join all patches into one sharded dataset with splits that share no ground."""
    from sereno.pipeline.pack import pack_patches

    *inputs, output = patches
    pack_patches(inputs, output, config.parse_settings(config.PackSettings, settings))


@app.command()
def verify(manifests: Annotated[list[Path], typer.Argument(help="Manifests of stores.")]) -> None:
    """Compare every file of stores with their manifests."""
    from sereno.pipeline.store import verify_store

    for manifest in manifests:
        typer.echo(f"{manifest}: {verify_store(manifest)} files as written")


@app.command()
def ledger(
    results: Annotated[Path, typer.Argument(help="Folder that holds the results of the other steps.")],
) -> None:
    """Say what became of every item and asset, what reading them cost, and what was not simply used, with reasons."""
    from sereno.pipeline.ledger import describe_ledger, read_ledger

    paths = [*sorted(results.glob("query/*.ledger.csv")), *sorted(results.glob("ingest/*/*.ledger.csv"))]
    if not paths:
        raise MissingError(f"there is no ledger in {results}: name the folder that the workflow wrote to, after `snakemake query`")
    for line in describe_ledger([entry for path in paths for entry in read_ledger(path)]):
        typer.echo(line)


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="Folder written by `sereno simulate`.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8000,
) -> None:
    """Serve a simulated world as a STAC API until interrupted."""
    from sereno.pipeline.server import serve_folder

    serve_folder(folder, port)
