"""Real gateways as processes, one on SQLite or three on PostgreSQL and Redis, before a provider that counts."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
from faulty_provider import FaultyProvider
from services import Service

ADMIN_KEY = "sk-nemo-admin-of-the-replicas-0123456789"
PEPPER = "a pepper that all replicas of the tests share"
VIEWER_TOKEN = "a viewer token that they share as well"
INPUT_NANOS, OUTPUT_NANOS = 1_000, 1_000_000  # a token of an answer is a tenth of a cent
PRICED = ("ok", "many-chunks", "hang", "stepped", "drop-mid-stream", "usage-missing", "slow-first-byte")
DOLLAR = 1_000_000_000
PATIENCE_S = 30.0
VERIFIES_S = 300.0  # the whole ledger, of a long test


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = PATIENCE_S) -> None:
    """Ask again and again until something is true; each question takes the time of a query or a request."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"


def free_ports(count: int) -> list[int]:
    """Ports that are free now; all are held together while they are chosen, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Books(Protocol):
    """The store behind the gateways, read past them."""

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a query in which `?` stands for each value."""

    def watch(self) -> None:
        """From now on let the database itself record the most that each balance ever had posted and held."""


@dataclass(frozen=True, kw_only=True)
class SqliteBooks:
    """The one gateway's file."""

    path: Path

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=PATIENCE_S)) as db:
            return db.execute(sql, values).fetchall()

    def watch(self) -> None:
        most = "INSERT INTO watched VALUES (new.kind, new.scope_id, new.posted_nanos + new.held_nanos) "
        most += "ON CONFLICT (kind, scope_id) DO UPDATE SET most = max(most, excluded.most); END"
        with closing(sqlite3.connect(self.path, isolation_level=None, timeout=PATIENCE_S)) as db:
            # A trigger runs before the commit, so what it records includes every state that was ever committed.
            db.execute("CREATE TABLE watched (kind TEXT, scope_id TEXT, most INTEGER, PRIMARY KEY (kind, scope_id))")
            for event in ("INSERT", "UPDATE"):
                db.execute(f"CREATE TRIGGER watch_{event} AFTER {event} ON balances BEGIN {most}")


@dataclass(frozen=True, kw_only=True)
class PostgresBooks:
    """The database that all replicas share."""

    url: str

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as db:
            return db.execute(sql.replace("?", "%s"), values).fetchall()

    def watch(self) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute("CREATE TABLE watched (kind TEXT, scope_id TEXT, most BIGINT, PRIMARY KEY (kind, scope_id))")
            # Deferred, so it runs at the commit, and reads the row as it is committed.
            db.execute(
                """CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO watched SELECT kind, scope_id, posted_nanos + held_nanos FROM balances WHERE id = new.id
                ON CONFLICT (kind, scope_id) DO UPDATE SET most = greatest(watched.most, excluded.most);
                RETURN NULL; END $$"""
            )
            db.execute(
                """CREATE CONSTRAINT TRIGGER watch AFTER INSERT OR UPDATE ON balances
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION watch()"""
            )


@dataclass(kw_only=True)
class GatewayProcess:
    """`nemo-agents gateway` on a port of its own, to be started and killed as often as a test likes."""

    home: Path
    port: int
    flags: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.home.with_name(f"{self.home.name}.log")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start it and return when it has said that it listens."""
        self.begin()
        self.await_banner()

    def begin(self) -> None:
        """Start it and do not wait."""
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home.parent),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "PYTHONUNBUFFERED": "1",
            "NEMO_ADMIN_KEY": ADMIN_KEY,
            "NEMO_PEPPER": PEPPER,
            "NEMO_VIEWER_TOKEN": VIEWER_TOKEN,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "nemo_agents", "gateway"),
                    *("--port", str(self.port), "--home", str(self.home), *self.flags),
                ],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
            )

    def await_banner(self) -> None:
        """Wait until it has said that it listens."""
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "listening on" in line:
                return
        raise AssertionError(f"the gateway ended with {self.process.wait()}: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """Ask it to end; return its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=timeout_s)
        return self.process.returncode

    def end(self) -> None:
        """Make sure that it is over."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass(frozen=True, kw_only=True)
class Key:
    """A virtual key that a test made."""

    secret: str
    public_id: str
    fleet: str


@dataclass(kw_only=True)
class Stack:
    """Gateways that share one store, and the provider behind them."""

    gateways: list[GatewayProcess]
    provider: FaultyProvider
    books: Books
    http: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False, timeout=PATIENCE_S))

    @property
    def urls(self) -> list[str]:
        return [each.url for each in self.gateways]

    # --- the admin API -------------------------------------------------------------------------------------------
    def admin(self, method: str, path: str, body: Any = None, *, replica: int = 0, **params: Any) -> httpx.Response:
        return self.http.request(
            method,
            self.gateways[replica].url + path,
            json=body,
            params=params or None,
            headers={"authorization": f"Bearer {ADMIN_KEY}"},
        )

    def ok(self, method: str, path: str, body: Any = None, *, replica: int = 0, **params: Any) -> Any:
        answer = self.admin(method, path, body, replica=replica, **params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def key(self, *, fleet: str | None = None, budget: float | None = None, fleet_budget: float | None = None) -> Key:
        """Make a role's key in a fleet of its own, or in that one. Budgets are dollars for ever."""
        name = fleet or f"fleet-{uuid.uuid4().hex[:10]}"
        if fleet is None:
            self.ok("POST", "/team/new", {"team_id": name, "max_budget": fleet_budget})
        asked = {"key_alias": f"{name}-{uuid.uuid4().hex[:6]}", "team_id": name, "models": ["faulty/*"]}
        if budget is not None:
            asked["max_budget"] = budget
        issued = self.ok("POST", "/key/generate", asked)
        return Key(secret=issued["key"], public_id=issued["token"], fleet=name)

    def chat(self, key: Key | str, *, replica: int = 0, model: str = "faulty/ok", **body: Any) -> httpx.Response:
        """Ask for a completion of at most 20 tokens, unless told otherwise."""
        secret = key if isinstance(key, str) else key.secret
        asked = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, **body}
        return self.http.post(
            f"{self.gateways[replica].url}/v1/chat/completions",
            json=asked,
            headers={"authorization": f"Bearer {secret}"},
        )

    # --- the books -----------------------------------------------------------------------------------------------
    def flush(self) -> None:
        """Return when all that the gateways had queued is committed."""
        for url in self.urls:
            self.http.get(f"{url}/health/ready").raise_for_status()

    def spent(self, scope: str, kind: str = "fleet") -> tuple[int, int]:
        """Posted and held nanos of a scope."""
        sums = "SELECT coalesce(sum(posted_nanos), 0), coalesce(sum(held_nanos), 0) FROM balances"
        ((posted, held),) = self.books.rows(f"{sums} WHERE kind = ? AND scope_id = ?", kind, scope)
        return int(posted), int(held)

    def most(self, scope: str, kind: str = "fleet") -> int:
        """The most that a scope ever had posted and held together, as the database saw it."""
        ((most,),) = self.books.rows("SELECT most FROM watched WHERE kind = ? AND scope_id = ?", kind, scope)
        return int(most)

    def grant_of(self, key: Key) -> str:
        """The id by which a key's budget is kept."""
        ((grant,),) = self.books.rows("SELECT grant_id FROM secrets WHERE public_id = ?", key.public_id)
        return str(grant)

    def charged(self, markers: Iterable[str] = (), *, prefix: str | None = None) -> dict[str, int]:
        """What each call was charged in nanos, by its marker; a call without a row in the log is absent.

        Only what the ledger has counts: an entry that posts a hold, or the expiry that charges it in full.
        """
        ids = "SELECT r.run_id, c.request_id FROM calls c JOIN runs r ON r.run = c.run"
        amounts = (
            "SELECT request_id, sum(CASE kind WHEN 'void' THEN 0 ELSE amount_nanos END) FROM entries"
            " WHERE kind <> 'hold' GROUP BY request_id"
        )
        wanted = set(markers)
        by_request = {request: int(amount) for request, amount in self.books.rows(amounts)}
        found: dict[str, int] = defaultdict(int)
        for marker, request in self.books.rows(ids):
            if marker in wanted or (prefix is not None and marker.startswith(prefix)):
                found[marker] += by_request.get(request, 0)
        return dict(found)

    def settle(self, *fleets: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until nothing is held for these fleets, and check that the whole ledger adds up on every replica."""
        self.flush()
        until(lambda: all(self.spent(each)[1] == 0 for each in fleets), "every hold is closed", timeout_s=timeout_s)
        for replica in range(len(self.gateways)):
            answer = self.http.get(
                f"{self.gateways[replica].url}/nemo/ledger/verify",
                headers={"authorization": f"Bearer {ADMIN_KEY}"},
                timeout=VERIFIES_S,
            )
            assert answer.json() == {"problems": []}


MakeStack = Callable[..., AbstractContextManager[Stack]]
"""What the fixtures `make_stack` and `make_replicas` are: gateways with settings of the test's own."""


def billed(provider: FaultyProvider, *, prefix: str = "") -> dict[str, int]:
    """What the provider counted for each call that reached it, in nanos, by the call's marker."""
    found: dict[str, int] = defaultdict(int)
    for request in provider.seen()["requests"]:
        marker = request["body"]["messages"][0]["content"]
        if marker.startswith(prefix):
            found[marker] += request["prompt_tokens"] * INPUT_NANOS + request["completion_tokens"] * OUTPUT_NANOS
    return dict(found)


def configuration(provider_url: str, **settings: object) -> str:
    """A `gateway.toml` with the provider behind it and a price for all that it serves."""
    chosen = {"retries": 0, **settings}
    lines = ["[gateway]", 'sandbox = "off"', *(f"{name} = {toml_of(value)}" for name, value in chosen.items())]
    lines += ["[providers.faulty]", f'base_url = "{provider_url}"']
    for name in PRICED:
        lines += [f'[prices."faulty/{name}"]', 'input_per_mtok = "1"', 'output_per_mtok = "1000"']
    return "\n".join(lines) + "\n"


def toml_of(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def made_home(folder: Path, config: str) -> Path:
    """A home with this configuration, which the gateway has never seen."""
    folder.mkdir(mode=0o700, parents=True)
    (folder / "gateway.toml").write_text(config, encoding="utf-8")
    return folder


@contextmanager
def one_gateway(folder: Path, provider: FaultyProvider, **settings: object) -> Iterator[Stack]:
    """One process that keeps its books in SQLite."""
    home = made_home(folder / "home", configuration(provider.base_url, **settings))
    gateway = GatewayProcess(home=home, port=free_ports(1)[0])
    with ended_after([gateway]):
        gateway.start()
        stack = Stack(gateways=[gateway], provider=provider, books=SqliteBooks(path=home / "gateway.db"))
        stack.books.watch()
        yield stack


@contextmanager
def replicas(
    folder: Path,
    provider: FaultyProvider,
    *,
    database: str,
    cache: str,
    books: str = "",
    count: int = 3,
    **settings: object,
) -> Iterator[Stack]:
    """Several processes that share a PostgreSQL database and a Redis server; `books` is a way past theirs to it."""
    config = configuration(provider.base_url, **settings)
    gateways = [
        GatewayProcess(
            home=made_home(folder / f"home-{number}", config),
            port=port,
            flags=("--database", database, "--cache", cache),
        )
        for number, port in enumerate(free_ports(count))
    ]
    with ended_after(gateways):
        for gateway in gateways:  # all at once: they must agree on who brings the schema up to date
            gateway.begin()
        for gateway in gateways:
            gateway.await_banner()
        stack = Stack(gateways=gateways, provider=provider, books=PostgresBooks(url=books or database))
        stack.books.watch()
        yield stack


@contextmanager
def ended_after(gateways: Sequence[GatewayProcess]) -> Iterator[None]:
    try:
        yield
    finally:
        for gateway in gateways:
            gateway.end()


@contextmanager
def fresh_database(postgres: Service) -> Iterator[str]:
    """A database of its own on a running server."""
    import psycopg

    postgres.ensure()
    name = f"replicas_{uuid.uuid4().hex[:16]}"
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    yield f"{postgres.url.rpartition('/')[0]}/{name}"
    postgres.ensure()
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def empty_cache(url: str) -> None:
    import redis

    with redis.Redis.from_url(url) as cache:
        cache.flushdb()
