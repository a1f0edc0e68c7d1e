"""The data half of the command line: a sub-command per verb, and those that only look; each imports only what it uses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer

from sereno.pipeline import config
from sereno.pipeline.errors import CatalogueError, ConfigError, MissingError, PermanentError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Settings = Annotated[
    str, typer.Option("--settings", metavar="JSON", help="Settings of the step as JSON; what is left out has its default.")
]
Output = Annotated[Path, typer.Argument(help="Manifest to write; the store lies beside it.")]
LockFile = Annotated[Path, typer.Argument(help="Lock written by `sereno query`.")]
Tries = Annotated[int, typer.Option(min=1, help="Try so often in all if a server does not give what it should, with growing pauses.")]
S = TypeVar("S", bound=config.Settings)
FIRST_PAUSE_S: Final = 10.0
"""Pause before the second try, seconds; each further one is three times as long. Single requests have been repeated by then."""

logger = logging.getLogger(__name__)


@app.command()
def simulate(output: Output, settings: Settings = "{}") -> None:
    """Make a small world with known truth: product files, a catalogue, and what lies under the clouds."""
    from sereno.pipeline.simulate import simulate_world

    simulate_world(output, config.parse_settings(config.SimulateSettings, settings))


@app.command()
def query(  # noqa: PLR0913, PLR0917 - one parameter per option of the command
    output: Annotated[Path, typer.Argument(help="Lock to write.")],
    area: Annotated[str, typer.Option(help="Name of the area.")],
    settings: Settings = "{}",
    max_requests: Annotated[int | None, typer.Option(help="Instead of max_requests of the settings.")] = None,
    dem_margin: Annotated[float, typer.Option(min=0, help="Ground around the area where elevation models are searched, metres.")] = (
        config.DemSettings().margin_m
    ),
    task: Annotated[config.TaskName, typer.Option(help="What the scenes are for.")] = "cloud-removal",
    tries: Tries = 1,
) -> None:
    """Search scenes of one area, pair SAR, cloudy and clear ones (or form the groups of another task), and write the lock."""
    chosen = override_settings(config.parse_settings(config.QuerySettings, settings), max_requests=max_requests)
    from sereno.pipeline.query import query_pairs

    try_again(lambda: query_pairs(area, output, chosen, dem_margin_m=dem_margin, task=task), tries)


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
    from sereno.pipeline.outcomes import describe_refusals
    from sereno.pipeline.pairs import Lock

    chosen = config.parse_settings(config.PlanSettings, settings) if config_file is None else _read_config(config_file).plan
    read = [Lock.read(lock) for lock in locks]
    for line in (*describe_plans([estimate_area(lock, chosen) for lock in read]), *describe_refusals(read)):
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
def dem(
    lock: LockFile,
    output: Annotated[Path, typer.Argument(help="Manifest to write; the image lies beside it.")],
    settings: Settings = "{}",
    attempts: Annotated[int | None, typer.Option(help="Instead of attempts of the settings.")] = None,
    tries: Tries = 1,
) -> None:
    """Join the elevation models of a lock to one image of heights over its area."""
    chosen = override_settings(config.parse_settings(config.DemSettings, settings), attempts=attempts)
    from sereno.pipeline.dem import join_elevations

    try_again(lambda: join_elevations(lock, output, chosen), tries)


@app.command()
def ingest(  # noqa: PLR0913, PLR0917 - one parameter per option of the command
    lock: LockFile,
    scene: Annotated[str, typer.Argument(help="Scene id in the lock.")],
    output: Output,
    settings: Settings = "{}",
    readers: Annotated[int | None, typer.Option(help="Instead of readers of the settings.")] = None,
    attempts: Annotated[int | None, typer.Option(help="Instead of attempts of the settings.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Instead of scheduler of the settings.")] = None,
    dem: Annotated[str | None, typer.Option(help="Instead of dem of the settings.")] = None,
    tries: Tries = 1,
) -> None:
    """Read one scene: calibrated, offset removed, validity apart from values."""
    parsed = config.parse_settings(config.IngestSettings, settings)
    chosen = override_settings(parsed, readers=readers, attempts=attempts, scheduler=scheduler, dem=dem)
    from sereno.pipeline.ingest import ingest_scene

    try_again(lambda: ingest_scene(lock, scene, output, chosen), tries)


def override_settings(settings: S, **given: int | str | None) -> S:
    """`settings` with the options that are given instead of its own; checked again.

    They stand beside the JSON because they change how a step works and not what it writes: the workflow keeps them out of what a job
    depends on.

    Raises:
        ConfigError: a value is none of those that the setting can have.
    """
    told = {name: value for name, value in given.items() if value is not None}
    where = ", ".join(f"--{name.replace('_', '-')}" for name in told)
    return config.load_settings(type(settings), {**settings.model_dump(exclude_unset=True), **told}, where=where) if told else settings


def try_again(work: Callable[[], None], tries: int, pause: Callable[[float], None] = time.sleep) -> None:
    """Do `work`, at most `tries` times as long as a server does not give what it should; `pause` waits between, longer each time.

    Here and not in the workflow, since Snakemake's `retries` cannot tell a server that may recover from a setting or a file that will
    be wrong each time. Only a `CatalogueError` is tried again, unless it is a `PermanentError`. A job that is killed or crashes is done by
    the next run.

    Raises:
        CatalogueError: also the last try failed.
    """
    for number in range(1, tries):
        try:
            return work()
        except PermanentError:
            raise
        except CatalogueError as error:
            wait_s = FIRST_PAUSE_S * 3 ** (number - 1)
            logger.warning("try %d of %d failed: %s; the next one in %.0f s", number, tries, error, wait_s)
            pause(wait_s)
    return work()


@app.command()
def align(
    lock: LockFile,
    pair: Annotated[str, typer.Argument(help="Id of a pair or group in the lock.")],
    scenes: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCENES... OUTPUT",
            help="Scene manifests (SAR, cloudy, clear, and in a series before and after), then the manifest to write.",
        ),
    ],
    settings: Settings = "{}",
) -> None:
    """Lay the scenes of one pair or group onto each other, with the measured shift taken out or refused."""
    from sereno.pipeline.align import align_job

    *inputs, output = scenes
    align_job((lock, pair), inputs, output, config.parse_settings(config.AlignSettings, settings))


@app.command()
def mask(
    pair: Annotated[Path, typer.Argument(help="Manifest of a pair or group.")],
    output: Output,
    settings: Settings = "{}",
) -> None:
    """Find cloud and shadow of a pair's input and target, or of a group's images."""
    from sereno.pipeline.mask import mask_pair

    mask_pair(pair, output, config.parse_settings(config.MaskSettings, settings))


@app.command()
def patch(
    pair: Annotated[Path, typer.Argument(help="Manifest of a pair or group.")],
    masks: Annotated[Path, typer.Argument(help="Mask manifest.")],
    output: Output,
    settings: Settings = "{}",
) -> None:
    """Cut a masked pair or group into windows worth keeping."""
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
    from sereno.pipeline.ledger import describe_ledger, describe_losses, find_ledgers, read_ledgers
    from sereno.pipeline.outcomes import describe_outcome, list_outcome, read_outcome

    paths = find_ledgers(results)
    if not paths:
        raise MissingError(f"there is no ledger in {results}: name the folder that the workflow wrote to, after `snakemake query`")
    entries, outcome = read_ledgers(paths), read_outcome(results)
    told = (*describe_losses(entries, results), *describe_outcome(outcome, results))
    for line in (*describe_ledger(entries), *list_outcome(outcome), *told):
        typer.echo(line)


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="Folder written by `sereno simulate`.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8000,
) -> None:
    """Serve a simulated world as a STAC API until interrupted."""
    from sereno.pipeline.server import serve_folder

    serve_folder(folder, port)
