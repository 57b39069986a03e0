"""Redis killed, frozen, flushed or read back from an old file, and replicas that die: no limit is ever exceeded."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
import redis
from limiter_bench import Log, Use, fresh_name, now_us, redis_limiter, scopes_of, settled, surely_worst_window, until
from services import Service, run_redis

from nemo_agents.gateway.limiter.base import LimiterUnavailable, Repeat
from nemo_agents.gateway.limiter.link import Link
from nemo_agents.gateway.limiter.redis import RedisLimiter
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.policy.budgets import LoopRule
from nemo_agents.secret import Secret

WINDOW_US = 2_000_000


async def ask(limiter: RedisLimiter, scopes, log: Log, admitted: list[tuple[int, int]]) -> bool | None:
    """Ask to be admitted, and write an admission into the log as the data plane does; None when there is no answer."""
    asked = now_us()
    try:
        answer = await limiter.admit(0, scopes, None)
    except LimiterUnavailable:
        return None
    if answer.refusal is None:
        answered = now_us()
        log.uses.append(Use(scopes[0].id, scopes[0].fleet, answered, 0))
        admitted.append((asked, answered))
    return answer.refusal is None


def flush(server: Service) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


async def first_answer(limiter: RedisLimiter, scopes, log: Log, admitted, *, within_s: float) -> None:
    """Ask until there is an answer again."""
    async with asyncio.timeout(within_s):
        answer = None
        while answer is None:
            await asyncio.sleep(0)
            answer = await ask(limiter, scopes, log, admitted)


async def drop(limiter: RedisLimiter) -> None:
    """End a replica as `kill -9` does: it gives nothing back and says nothing."""
    limiter._leases.clear()
    for task in limiter._tasks:
        task.cancel()
    await limiter._link.close()


@pytest.mark.parametrize("loss", ["killed", "flushed"])
async def test_no_window_holds_more_than_the_limit_across_a_loss(redis_server, redis_url, loss):
    log, admitted, limit = Log(), [], 40
    replicas = [redis_limiter(redis_url, log, window_us=WINDOW_US) for _ in range(3)]
    for replica in replicas:
        await replica.start()
    scopes, until_us = scopes_of(fresh_name(), rpm=limit), now_us() + 3 * WINDOW_US
    answers: list[bool | None] = []

    async def client(replica):
        while now_us() < until_us:
            answers.append(await ask(replica, scopes, log, admitted))
            await asyncio.sleep(0)

    async def misfortune():
        for _ in range(2):
            seen = len(admitted)
            await until(lambda seen=seen: len(admitted) >= seen + limit // 2)
            if loss == "killed":
                await asyncio.to_thread(redis_server.restart)
            else:
                flush(redis_server)

    await asyncio.gather(misfortune(), *(client(replica) for replica in replicas * 3))
    assert surely_worst_window(admitted, WINDOW_US) <= limit
    assert len(admitted) > 2 * limit, "and there was room in later windows"
    assert log.reads >= 3, "the start and each loss read the log"
    for replica in replicas:
        await replica.close()


async def test_a_frozen_redis_is_unavailable_at_once_and_back_without_a_restart(redis_server, redis_url):
    log, admitted = Log(), []
    limiter = redis_limiter(redis_url, log)
    await limiter.start()
    scopes = scopes_of(fresh_name(), rpm=100)
    assert await ask(limiter, scopes, log, admitted)
    redis_server.stop()
    started = time.monotonic()
    with pytest.raises(LimiterUnavailable, match="does not answer in time"):
        await limiter.admit(0, scopes, None)
    assert time.monotonic() - started < 2
    for _ in range(100):
        with pytest.raises(LimiterUnavailable):
            await limiter.admit(0, scopes, None)
    assert time.monotonic() - started < 2.5, "nobody waits any more"
    redis_server.cont()
    await first_answer(limiter, scopes, log, admitted, within_s=5)
    assert (await limiter.used(0, scopes))[0][0] >= len(admitted), "nothing was forgotten"
    assert log.reads == 1, "and nothing had to be rebuilt"
    await limiter.close()


async def test_a_killed_redis_is_back_within_five_seconds_of_its_restart(redis_server, redis_url):
    log, admitted = Log(), []
    limiter = RedisLimiter(Secret(redis_url), recent_use=log.recent_use)  # with its times as in production
    await limiter.start()
    scopes = scopes_of(fresh_name(), rpm=3)
    for _ in range(3):
        assert await ask(limiter, scopes, log, admitted)
    redis_server.kill()
    started = time.monotonic()
    assert await ask(limiter, scopes, log, admitted) is None
    assert await ask(limiter, scopes, log, admitted) is None
    assert time.monotonic() - started < 1
    redis_server.restart()
    await first_answer(limiter, scopes, log, admitted, within_s=5)
    assert len(admitted) == 3, "the minute is still used up"
    await limiter.close()


async def test_what_is_in_flight_outlives_a_loss(redis_server, redis_url):
    """Places and estimates of calls in flight are in no log: their gateways say what they hold."""
    log = Log()
    mine, other = (redis_limiter(redis_url, log) for _ in range(2))
    await mine.start()
    await other.start()
    scopes = scopes_of(fresh_name(), tpm=100, max_parallel=1)
    entry = await mine.enter(0, scopes, 60)
    flush(redis_server)
    refused = await other.enter(0, scopes, 10)
    assert refused.refusal.limit == "max_parallel"
    assert await other.used(0, scopes) == [(0, 60)]
    mine.leave(entry.lease, 25)
    await settled(mine)
    assert await other.used(0, scopes) == [(0, 25)], "settled although the entry was rebuilt"
    assert (await other.enter(0, scopes, 75)).lease is not None
    for limiter in (mine, other):
        await limiter.close()


async def test_an_old_file_is_not_believed():
    """A Redis that comes back with a snapshot of earlier has the marker, and not what was admitted since."""
    with run_redis() as server:
        log, admitted = Log(), []
        limiter = redis_limiter(server.url, log)
        await limiter.start()
        scopes = scopes_of(fresh_name(), rpm=5)
        assert await ask(limiter, scopes, log, admitted)
        with redis.Redis.from_url(server.url) as client:
            client.save()
        for _ in range(4):
            assert await ask(limiter, scopes, log, admitted)
        server.restart()
        with redis.Redis.from_url(server.url) as client:
            assert client.dbsize() > 0, "it did read its file"
        await first_answer(limiter, scopes, log, admitted, within_s=5)
        assert len(admitted) == 5
        await limiter.close()


class Switch:
    """An address that stays, whatever server is behind it: connections go to the one that is primary when they open."""

    def __init__(self, primary: Service) -> None:
        self.primary = primary

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.primary.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))


def command(server: Service, *words: str) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.execute_command(*words)


async def test_a_failover_behind_one_address_is_survived():
    """The old primary keeps the connection and refuses every write on it; the new one is where the address leads."""
    log, admitted = Log(), []
    with run_redis() as old, run_redis() as new:
        command(new, "REPLICAOF", "127.0.0.1", str(old.port))
        switch = Switch(old)
        async with await asyncio.start_server(switch.serve, "127.0.0.1", 0) as server:
            limiter = redis_limiter(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", log)
            await limiter.start()
            scopes = scopes_of(fresh_name(), rpm=3)
            assert await ask(limiter, scopes, log, admitted)
            command(new, "REPLICAOF", "NO", "ONE")
            switch.primary = new
            command(old, "REPLICAOF", "127.0.0.1", str(new.port))
            with pytest.raises(LimiterUnavailable, match="read only replica"):
                await limiter.admit(0, scopes, None)
            await first_answer(limiter, scopes, log, admitted, within_s=5)
            answers = [await ask(limiter, scopes, log, admitted) for _ in range(3)]
            assert answers == [True, False, False], "what the old one had admitted is counted"
            await limiter.close()


async def test_a_primary_that_is_one_again_is_used_again():
    log, admitted = Log(), []
    with run_redis() as server, run_redis() as other:
        limiter = redis_limiter(server.url, log)
        await limiter.start()
        scopes = scopes_of(fresh_name(), rpm=2)
        assert await ask(limiter, scopes, log, admitted)
        command(server, "REPLICAOF", "127.0.0.1", str(other.port))
        assert await ask(limiter, scopes, log, admitted) is None
        assert await ask(limiter, scopes, log, admitted) is None
        command(server, "REPLICAOF", "NO", "ONE")
        await first_answer(limiter, scopes, log, admitted, within_s=5)
        assert await ask(limiter, scopes, log, admitted) is False
        assert len(admitted) == 2
        await limiter.close()


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (b"-READONLY You can't write against a read only replica. script: 0a, on @user_script:1.", True),
        (b"-ERR Error running script (call to f_0a): @user_script:9: -READONLY You can't write", True),
        (b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        (b"-LOADING Redis is loading the dataset in memory", True),
        (b"-BUSY Redis is busy running a script.", True),
        (b"-NOREPLICAS Not enough good replicas to write.", True),
        (b"-CLUSTERDOWN The cluster is down", True),
        (b"-OOM command not allowed when used memory > 'maxmemory'.", False),
        (b"-ERR user_script:3: the READONLY of nobody", False),
    ],
)
async def test_which_answers_end_a_connection(answer, ends):
    """Those after which another server, or the same one later, may serve; not those that say something of the call."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                words = int((await reader.readline())[1:])
                said = [await reader.readexactly(int((await reader.readline())[1:]) + 2) for _ in range(words)]
                script = said[0].startswith(b"EVALSHA")
                writer.write(answer + b"\r\n" if script else b"$8\r\nrun_id:x\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        link = Link(Secret(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"), on_server=lambda _: None)
        await link.connect()
        with pytest.raises(LimiterUnavailable):
            await link.call("give_up", ("k",), ("e",))
        await asyncio.sleep(0)
        assert link.up is not ends
        await link.connect()
        assert connections == 1 + ends
        await link.close()


async def test_scripts_that_were_flushed_are_brought_again(redis_server, redis_url):
    limiter = redis_limiter(redis_url)
    await limiter.start()
    with redis.Redis.from_url(redis_server.url) as client:
        client.script_flush()
    scopes = scopes_of(fresh_name(), rpm=1)
    assert (await limiter.admit(0, scopes, None)).refusal is None
    assert (await limiter.admit(0, scopes, None)).refusal is not None
    await limiter.close()


async def test_a_replica_that_dies_gives_its_places_back(redis_url):
    dying, other = redis_limiter(redis_url, lease_s=0.5), redis_limiter(redis_url, lease_s=0.5)
    await dying.start()
    await other.start()
    scopes = scopes_of(fresh_name(), max_parallel=1)
    assert (await dying.enter(0, scopes, 1)).lease is not None
    await drop(dying)
    assert (await other.enter(0, scopes, 1)).lease is None
    async with asyncio.timeout(3):
        while (await other.enter(0, scopes, 1)).lease is None:
            pass
    await other.close()


async def test_a_long_call_keeps_its_place(redis_url):
    holding, other = redis_limiter(redis_url, lease_s=0.4), redis_limiter(redis_url, lease_s=0.4)
    await holding.start()
    await other.start()
    scopes = scopes_of(fresh_name(), max_parallel=1)
    entry = await holding.enter(0, scopes, 1)
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        assert (await other.enter(0, scopes, 1)).lease is None
    holding.leave(entry.lease, 1)
    await settled(holding)
    assert (await other.enter(0, scopes, 1)).lease is not None
    await holding.close()
    await other.close()


async def test_closing_gives_back_what_is_held(redis_url):
    leaving, other = redis_limiter(redis_url), redis_limiter(redis_url)
    await leaving.start()
    await other.start()
    scopes = scopes_of(fresh_name(), max_parallel=1)
    await leaving.enter(0, scopes, 1)
    await leaving.close()
    assert (await other.enter(0, scopes, 1)).lease is not None
    await other.close()


async def test_what_left_while_redis_was_away_is_told_later(redis_server, redis_url):
    limiter = redis_limiter(redis_url)
    await limiter.start()
    scopes = scopes_of(fresh_name(), tpm=100, max_parallel=1)
    entry = await limiter.enter(0, scopes, 50)
    redis_server.stop()
    with pytest.raises(LimiterUnavailable):
        await limiter.used(0, scopes)
    limiter.leave(entry.lease, 20)
    redis_server.cont()
    await until(lambda: limiter._link.up)
    await settled(limiter)
    assert await limiter.used(0, scopes) == [(0, 20)]
    assert (await limiter.enter(0, scopes, 80)).lease is not None
    await limiter.close()


async def test_what_left_is_settled_once_although_it_was_told_twice(redis_server, redis_url):
    """The answer was lost, not the command: the server does it when it goes on, and is told again."""
    limiter = redis_limiter(redis_url)
    await limiter.start()
    scopes = scopes_of(fresh_name(), tpm=100)
    kept, gone = await limiter.enter(0, scopes, 50), await limiter.enter(0, scopes, 50)
    assert kept.lease is not None
    redis_server.stop()
    limiter.leave(gone.lease, 20)
    await until(lambda: not limiter._link.up)
    redis_server.cont()
    await until(lambda: limiter._link.up)
    await settled(limiter)
    assert await limiter.used(0, scopes) == [(0, 70)]
    await limiter.close()


async def test_a_caller_that_gives_up_has_entered_nothing(redis_server, redis_url):
    limiter = redis_limiter(redis_url)
    await limiter.start()
    scopes = scopes_of(fresh_name(), tpm=100, max_parallel=1)
    redis_server.stop()
    waiting = asyncio.create_task(limiter.enter(0, scopes, 60))
    await until(lambda: bool(limiter._link._waiting))
    await until(lambda: not limiter._link._waiting)  # it was sent
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    redis_server.cont()
    async with asyncio.timeout(5):
        while (entry := await limiter.enter(0, scopes, 100)).lease is None:
            assert entry.refusal.limit in {"max_parallel", "tpm"}
    await limiter.close()


async def test_a_store_that_cannot_be_read_admits_nothing(redis_server, redis_url):
    log = Log()
    down = False

    async def recent_use(since_us):
        if down:
            raise StoreUnavailable("the database is away")
        return await log.recent_use(since_us)

    limiter = RedisLimiter(Secret(redis_url), recent_use=recent_use, grace_s=0.1, beat_s=0.05)
    await limiter.start()
    scopes = scopes_of(fresh_name(), rpm=2)
    down = True
    flush(redis_server)
    with pytest.raises(LimiterUnavailable, match="the database is away"):
        await limiter.admit(0, scopes, None)
    log.uses = [Use(scopes[0].id, scopes[0].fleet, now_us(), 0)] * 2
    down = False
    async with asyncio.timeout(5):
        while True:
            try:
                answer = await limiter.admit(0, scopes, None)
                break
            except LimiterUnavailable:
                await asyncio.sleep(0)
    assert answer.refusal is not None
    await limiter.close()


async def test_a_replica_that_dies_while_rebuilding_is_followed_by_another(redis_server, redis_url):
    stuck = asyncio.Event()

    async def never(since_us):
        stuck.set()
        await asyncio.Event().wait()

    dying = RedisLimiter(Secret(redis_url), recent_use=never, grace_s=0.0)
    starting = asyncio.create_task(dying.start())
    await stuck.wait()
    starting.cancel()
    await dying._link.close()  # so that it cannot say that it gives up
    dying._recovering.cancel()
    other = redis_limiter(redis_url)
    async with asyncio.timeout(8):
        await other.start()
    assert (await other.admit(0, scopes_of(fresh_name(), rpm=1), None)).refusal is None
    await other.close()


async def test_everything_of_a_fleet_is_on_one_node_of_a_cluster():
    """A server in cluster mode refuses a script whose keys are not kept together."""
    with run_redis("--cluster-enabled", "yes") as server:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                pass
        log = Log()
        limiter = redis_limiter(server.url, log)
        await limiter.start()
        for name in ("a", "b", "c}{d", "é"):
            scopes = scopes_of(name, rpm=5, tpm=100, max_parallel=2, fleet={"rpm": 9}, model={"tpm": 90})
            repeat = Repeat(run=f"{name}/r", digest=b"d" * 16, rule=LoopRule())
            assert (await limiter.admit(0, scopes, repeat)).refusal is None
            entry = await limiter.enter(0, scopes, 10)
            flush(server)
            limiter.leave(entry.lease, 5)
            held = (await limiter.enter(0, scopes, 10)).lease
            log.uses.append(Use(scopes[0].id, name, now_us(), 7, "gpt-4o"))
            flush(server)
            assert (await limiter.used(0, scopes))[2] == (1, 17)
            limiter.leave(held, 0)
            await settled(limiter)
            assert (await limiter.used(0, scopes))[2] == (1, 7)
            log.uses.clear()
        await limiter.close()


async def test_every_key_ends_by_itself(redis_server, redis_url):
    limiter = redis_limiter(redis_url)
    await limiter.start()
    scopes = scopes_of(fresh_name(), rpm=5, fleet={"tpm": 1000})
    entry = await limiter.enter(0, scopes, 10)
    flush(redis_server)
    await limiter.admit(0, scopes, Repeat(run="f/r", digest=b"d" * 16, rule=LoopRule()))
    limiter.leave(entry.lease, 3)
    await limiter.enter(0, scopes, 10)
    await settled(limiter)
    with redis.Redis.from_url(redis_server.url) as client:
        lives = {key: client.ttl(key) for key in client.scan_iter()}
    assert len(lives) > 16
    assert all(0 < life <= 86_400 for life in lives.values()), lives
    await limiter.close()
