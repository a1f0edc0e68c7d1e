"""A real STAC API for tests: stac-fastapi-pgstac over PostgreSQL with PostGIS, filled with items and ended with the block.

Enters: collections and items. Leaves: the address of the API. PostgreSQL comes from the system, pgstac from a virtual environment of its
own, so that its dependencies never mix with ours; both listen on 127.0.0.1 only, and their data are gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

ROOT: Final = Path(__file__).parent.parent.parent
VARIABLE: Final = "SERENO_STAC_VENV"
"""Environment variable with the folder of the virtual environment that holds stac-fastapi-pgstac and pypgstac."""
DEFAULT_VENV: Final = ROOT / ".venv-stac"
INSTALL_POSTGRES: Final = "apt-get install postgresql postgresql-postgis"
INSTALL_VENV: Final = "python3 -m venv .venv-stac && .venv-stac/bin/pip install -r tests/support/stac_server.txt"
USER: Final = "postgres"
"""System user that runs PostgreSQL where we are root: it refuses to run as root."""
START_S: Final = 60.0
"""What has not answered after so many seconds has failed."""
SQL_CONTEXT: Final = (
    "INSERT INTO pgstac.pgstac_settings (name, value) VALUES ('context', '{}') ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
"""Whether pgstac counts all matches of a search: `on` or `off`, its default."""


@dataclass(frozen=True)
class Programs:
    """What the servers are started with."""

    postgres: Path
    """Folder with `initdb`, `postgres` and `psql`."""
    python: Path
    """Interpreter of the virtual environment with stac-fastapi-pgstac."""


@dataclass(frozen=True)
class StacServer:
    """A running API."""

    url: str
    """Its landing page."""
    programs: Programs
    """What it was started with."""
    environment: dict[str, str]
    """Where its database is, as PostgreSQL's own variables."""

    def run_sql(self, command: str) -> None:
        """Run one SQL command in its database."""
        run([str(self.programs.postgres / "psql"), "--quiet", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-c", command], self.environment)

    def count_matches(self, *, counting: bool) -> None:
        """Let answers state `numberMatched`, or not."""
        self.run_sql(SQL_CONTEXT.format("on" if counting else "off"))


def find_programs() -> Programs | str:
    """What the servers are started with, or in words what is missing and which command installs it."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    on_path = shutil.which("initdb")
    folders = [folder for folder in (*folders, *([Path(on_path).parent] if on_path else [])) if _has_postgis(folder)]
    python = Path(os.environ.get(VARIABLE) or DEFAULT_VENV) / "bin" / "python"
    if not folders:
        return f"no PostgreSQL with PostGIS on this machine: {INSTALL_POSTGRES}"
    if not python.is_file():
        return f"{python} is not there: {INSTALL_VENV}, or set {VARIABLE}"
    return Programs(folders[0], python)


def _has_postgis(folder: Path) -> bool:
    config = folder / "pg_config"
    if not (folder / "initdb").is_file() or not config.is_file():
        return False
    shared = subprocess.run([config, "--sharedir"], capture_output=True, text=True, check=True).stdout.strip()
    return (Path(shared) / "extension" / "postgis.control").is_file()


def run(command: Sequence[str], environment: dict[str, str], user: str | None = None) -> str:
    """What `command` says, run to its end; its output is in the error if it fails."""
    done = subprocess.run(command, env=environment, user=user, cwd="/", capture_output=True, text=True, check=False, timeout=START_S * 2)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)[:200]} ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


@contextlib.contextmanager
def running_stac(programs: Programs, collections: Sequence[Json], items: Sequence[Json]) -> Iterator[StacServer]:
    """A STAC API that holds `collections` and `items`, as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="sereno-stac-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # its owner is us, the database may be another user's
        environment = stack.enter_context(_running_postgres(programs, folder))
        pypgstac = [str(programs.python), "-m", "pypgstac.pypgstac"]
        run([*pypgstac, "migrate"], environment)
        for table, values in (("collections", collections), ("items", items)):
            path = folder / f"{table}.ndjson"
            path.write_text("".join(json.dumps(value) + "\n" for value in values))
            run([*pypgstac, "load", table, str(path)], environment)
        url = stack.enter_context(_running_api(programs, environment, folder / "api.log"))
        yield StacServer(url, programs, environment)


@contextlib.contextmanager
def _running_postgres(programs: Programs, folder: Path) -> Iterator[dict[str, str]]:
    """A database server with an empty cluster; the variables with which clients find it."""
    user = USER if os.geteuid() == 0 else None
    port, data, secret = _find_port(), folder / "data", folder / "password"
    data.mkdir()
    password = secrets.token_hex(16)  # the port is open to every user of this machine
    secret.write_text(password)
    secret.chmod(0o600)
    if user:
        for path in (data, secret):
            os.chown(path, pwd.getpwnam(user).pw_uid, -1)
    plain = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
    how = ["--username=sereno", f"--pwfile={secret}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"]
    run([str(programs.postgres / "initdb"), f"--pgdata={data}", *how], plain, user)
    quick = {
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "max_connections": "40",
        "listen_addresses": "127.0.0.1",
    }
    options = [f"-c{name}={value}" for name, value in {**quick, "unix_socket_directories": str(data)}.items()]
    command = [str(programs.postgres / "postgres"), "-D", str(data), "-p", str(port), *options]
    clients = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "sereno", "PGPASSWORD": password, "PGDATABASE": "postgres"}
    with _running(command, plain, folder / "postgres.log", user) as process:
        _await(process, lambda: _accepts(programs, plain | clients), folder / "postgres.log")
        yield plain | clients


def _accepts(programs: Programs, environment: dict[str, str]) -> bool:
    return subprocess.run([programs.postgres / "pg_isready", "--quiet"], env=environment, check=False).returncode == 0


@contextlib.contextmanager
def _running_api(programs: Programs, environment: dict[str, str], log: Path) -> Iterator[str]:
    port = _find_port()
    application = ["stac_fastapi.pgstac.app:create_app", "--factory"]
    command = [str(programs.python), "-m", "uvicorn", *application, "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    url = f"http://127.0.0.1:{port}"
    with _running(command, environment, log, None) as process:
        _await(process, lambda: _answers(f"{url}/_mgmt/ping"), log)
        yield url


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def _running(command: Sequence[str], environment: dict[str, str], log: Path, user: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """A child process as long as the block lasts; interrupted at its end, which PostgreSQL and uvicorn both take as a quick stop.

    Where the system can, it is interrupted as well if this process is killed.
    """
    setpriv = shutil.which("setpriv")
    command = [setpriv, "--pdeathsig", "INT", *command] if setpriv else command
    with log.open("wb") as output, subprocess.Popen(
        command, env=environment, user=user, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _await(process: subprocess.Popen[bytes], is_ready: Any, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r:.200} did not start: {log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)
