"""Where work runs: tasks in, their results out, from threads of this process or from the workers of a dask scheduler.

A task is a picklable function without arguments. Results keep the order of the tasks; the first fault of a task is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sereno.pipeline.errors import CatalogueError, MissingError

T = TypeVar("T")

THREADS = "threads"
"""Name of the scheduler that needs nothing: threads of this process."""
CONNECT_S = 20
"""How long a scheduler may take to answer, seconds."""


def run_tasks(tasks: Sequence[Callable[[], T]], scheduler: str, workers: int) -> list[T]:
    """The results of `tasks`, at most `workers` of them at work at a time, by `threads` or by the dask scheduler at that address.

    The workers of a scheduler have to see the same files and packages as this process.

    Raises:
        MissingError: an address is given, but the package `distributed` is not installed.
        CatalogueError: nothing answers at the address, or its workers die.
    """
    if scheduler != THREADS:
        return _run_on_cluster(tasks, scheduler, workers)
    if len(tasks) < 2 or workers < 2:
        return [task() for task in tasks]
    from dask.threaded import get

    graph = {index: (task,) for index, task in enumerate(tasks)}
    return list(get(graph, list(graph), num_workers=workers))


def _run_on_cluster(tasks: Sequence[Callable[[], T]], address: str, workers: int) -> list[T]:
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise MissingError(
            f"pipeline.ingest.scheduler is the address {address!r}, which needs the package distributed: "
            "install sereno with the extra `cluster`, or set it to `threads`"
        ) from None
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise CatalogueError(
            f"no dask scheduler answers at {address!r} ({' '.join(str(error).split())[:120]}): start one with `dask scheduler`, "
            "or set pipeline.ingest.scheduler to `threads`"
        ) from None
    with client:
        pending = list(enumerate(tasks))
        results: dict[int, T] = {}
        try:
            while pending:  # no more at a time than wanted: what comes back lies in this process's memory
                batch, pending = pending[:workers], pending[workers:]
                futures = [client.submit(task, pure=False) for _, task in batch]
                results.update(zip((index for index, _ in batch), client.gather(futures), strict=True))  # type: ignore[no-untyped-call]
        except KilledWorker as error:
            raise CatalogueError(
                f"the workers of the dask scheduler at {address!r} died ({' '.join(str(error).split())[:120]}): give them more memory"
            ) from None
    return [results[index] for index in range(len(tasks))]
