"""Real servers for tests: a PostgreSQL and a Redis of our own, in scratch folders, on free ports of the loopback.

`postgres_server` and `redis_server` last for the session (with pytest-xdist: one of each per worker), and can be
killed, frozen and restarted. `postgres_url` is a fresh database, `redis_url` an empty Redis, for one test.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_START_S = 30.0
_POSTGRES_FOLDERS = Path("/usr/lib/postgresql")  # Debian keeps the programs of each version off the PATH


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@dataclass(kw_only=True)
class Service:
    """A server process on a port that stays the same over restarts."""

    name: str
    url: str
    port: int
    command: Sequence[str]
    folder: Path
    is_ready: Callable[[int], bool]
    user: str | None = None  # None: who runs the tests
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert not self.running
        deadline = time.monotonic() + _START_S
        while True:
            log = self.folder / "server.log"
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    self.command,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    user=self.user,
                    group=self.user,
                    extra_groups=None if self.user is None else [],
                    umask=0o077 if self.user is None else -1,
                    start_new_session=True,  # an interrupt of the terminal is pytest's: it stops us in order
                )
            while not self.is_ready(self.port):
                # Waiting for its end is the pause between two questions.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=0.02)
                    break  # it ended: what a killed one left behind may still be in its way
                if time.monotonic() > deadline:
                    self._process.kill()
                    break
            else:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start:\n{log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """`kill -9`, of its helpers too: as if the machine had died."""
        if self.running:
            family = self._family()
            for pid in family:
                _signal(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """`SIGSTOP`: it keeps its port and its connections, and answers nothing."""
        _signal(self.pid, signal.SIGSTOP)  # first, so that it makes no new helper
        for pid in self._family():
            _signal(pid, signal.SIGSTOP)

    def cont(self) -> None:
        """`SIGCONT`: as if nothing had been."""
        for pid in reversed(self._family()):
            _signal(pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill it if it runs, and start it again on the same port with what it had kept on disk."""
        self.kill()
        self.start()

    def ensure(self) -> None:
        """Make it run and answer, whatever the last test has done to it."""
        if self.running:
            self.cont()
        else:
            self.start()

    def end(self, how: signal.Signals) -> None:
        """Ask it to end, and wait for it."""
        if self.running:
            self.cont()
            _signal(self.pid, how)
        if self._process is not None:
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.kill()

    def _family(self) -> list[int]:
        """Its process and those it made: PostgreSQL has one for each connection, each in a session of its own."""
        parents = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        found = [self.pid]
        for pid in found:  # grows while it is walked
            found += [child for child, parent in parents.items() if parent == pid]
        return found


def _signal(pid: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, which)


# --- Redis -----------------------------------------------------------------------------------------------------------


def redis_answers(port: int) -> bool:
    """Whether something that speaks Redis's protocol answers; asking for a password is an answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


@contextmanager
def run_redis(*flags: str) -> Iterator[Service]:
    """A Redis (or Valkey) that keeps nothing on disk, unless the flags say so; skips the test when there is none."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip("neither redis-server nor valkey-server is on the PATH: run .ci/install-system")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nemo-redis-") as folder:
        command = [binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", "", *flags]
        service = Service(
            name="redis",
            url=f"redis://127.0.0.1:{port}/0",
            port=port,
            command=command,
            folder=Path(folder),
            is_ready=redis_answers,
        )
        try:
            service.start()
            yield service
        finally:
            service.end(signal.SIGTERM)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Service]:
    """A real Redis, without persistence: what it has is lost when it is killed."""
    with run_redis() as service:
        yield service


@pytest.fixture
def redis_url(redis_server: Service) -> str:
    """The address of a running, empty Redis."""
    redis_server.ensure()
    with socket.create_connection(("127.0.0.1", redis_server.port), timeout=10) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(64) == b"+OK\r\n"
    return redis_server.url


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def _postgres_programs() -> tuple[str, str] | None:
    """`initdb` and `postgres` of one version: of the PATH, or else the newest that Debian keeps."""
    found = shutil.which("initdb"), shutil.which("postgres")
    if found[0] and found[1]:
        return found[0], found[1]
    folders = [folder / "bin" for folder in _POSTGRES_FOLDERS.glob("*") if (folder / "bin" / "postgres").exists()]
    if not folders:
        return None
    newest = max(folders, key=lambda folder: [int(part) for part in folder.parent.name.split(".") if part.isdigit()])
    return str(newest / "initdb"), str(newest / "postgres")


def postgres_answers(port: int) -> bool:
    """Whether it takes connections; while it recovers from a crash it refuses them."""
    import psycopg

    try:
        psycopg.connect(_postgres_url(port, "postgres"), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _postgres_url(port: int, database: str) -> str:
    return f"postgresql://postgres@127.0.0.1:{port}/{database}"


@contextmanager
def run_postgres(*flags: str) -> Iterator[Service]:
    """A PostgreSQL on an empty cluster, trusting the loopback; skips the test when there is none."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'nemo-agents[postgres]'")
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed: run .ci/install-system")
    # PostgreSQL refuses to run as root; the user of that name comes with Debian's package.
    user = "postgres" if os.geteuid() == 0 else None
    initdb, postgres = programs
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nemo-postgres-") as name:
        folder = Path(name)
        if user is not None:
            shutil.chown(folder, user, user)
        subprocess.run(
            [initdb, "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            cwd=folder,
            check=True,
            capture_output=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        # Without fsync: a killed server loses nothing that it had written, only a killed machine would.
        options = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": "", "fsync": "off"}
        options |= {"max_connections": "200", "shared_buffers": "64MB"}
        command = [postgres, "-D", str(folder / "data")]
        for option, value in options.items():
            command += ["-c", f"{option}={value}"]
        service = Service(
            name="postgres",
            url=_postgres_url(port, "postgres"),
            port=port,
            command=[*command, *flags],
            folder=folder,
            is_ready=postgres_answers,
            user=user,
        )
        try:
            service.start()
            yield service
        finally:
            service.end(signal.SIGINT)  # "fast": open connections are ended, not waited for


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Service]:
    """A real PostgreSQL; its `url` is of its administrator."""
    with run_postgres() as service:
        yield service


@pytest.fixture
def postgres_url(postgres_server: Service) -> Iterator[str]:
    """The address of a fresh, empty database, which is dropped after the test."""
    import psycopg

    postgres_server.ensure()
    name = f"test_{uuid.uuid4().hex[:16]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    yield _postgres_url(postgres_server.port, name)
    postgres_server.ensure()
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
