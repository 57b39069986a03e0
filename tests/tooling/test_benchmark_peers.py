"""The comparison with peers: its ratios, its percentiles, its load generator for streams, and what it installs."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def samples(target: str, *rows: tuple[int, float, float], foreign: float = 0.0):
    from load import Sample

    return [
        Sample(
            target=target,
            connections=16,
            round=number,
            per_s=per_s,
            p50_us=100,
            p99_us=200,
            cpu_us=cpu_us,
            foreign=foreign,
        )
        for number, per_s, cpu_us in rows
    ]


def rows_of(*taken):
    from peerreport import rows

    found = rows([sample for each in taken for sample in each], mock="mock", proxy="proxy", ours="gateway")
    return {row.figures.target: row for row in found}


def test_a_ratio_above_one_is_in_the_gateways_favour_both_ways():
    rows = rows_of(
        samples("mock", (1, 9000.0, 1.0)),
        samples("proxy", (1, 4000.0, 50.0)),
        samples("gateway", (1, 1000.0, 200.0)),
        samples("peer", (1, 250.0, 800.0)),
    )
    assert (rows["peer"].rate_ratio, rows["peer"].cpu_ratio) == (4.0, 4.0)
    assert (rows["proxy"].rate_ratio, rows["proxy"].cpu_ratio) == (0.25, 0.25)
    assert (rows["gateway"].rate_ratio, rows["mock"].rate_ratio) == (None, None)


def test_a_peer_is_compared_with_the_gateways_sample_of_the_same_round():
    """The machine slowed down after round 1: the peer that only has later rounds must not look the slower for it."""
    rows = rows_of(
        samples("mock", (1, 9000.0, 1.0), (2, 900.0, 1.0), (3, 900.0, 1.0)),
        samples("proxy", (1, 4000.0, 50.0), (2, 400.0, 50.0), (3, 400.0, 50.0)),
        samples("gateway", (1, 1000.0, 100.0), (2, 100.0, 200.0), (3, 100.0, 200.0)),
        samples("peer", (2, 50.0, 600.0), (3, 50.0, 600.0)),
    )
    assert rows["peer"].rate_ratio == 2.0
    assert rows["peer"].cpu_ratio == 3.0


def test_a_run_without_the_gateway_has_no_ratios_and_a_short_sample_without_processor_time_no_cpu_ratio():
    mock, proxy = samples("mock", (1, 9000.0, 1.0)), samples("proxy", (1, 4000.0, 50.0))
    assert rows_of(mock, proxy)["proxy"].rate_ratio is None
    rows = rows_of(mock, proxy, samples("gateway", (1, 10.0, 0.0)))
    assert (rows["proxy"].rate_ratio, rows["proxy"].cpu_ratio) == (0.0025, None)


def test_the_table_shows_each_server_and_a_dash_where_nothing_is_compared():
    from peerreport import table

    lines = table(
        list(
            rows_of(
                samples("mock", (1, 9000.0, 1.0)),
                samples("proxy", (1, 4000.0, 50.0)),
                samples("gateway", (1, 1000.0, 200.0)),
            ).values()
        )
    ).splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["mock", "proxy", "gateway"]
    assert lines[2].split()[-3:-1] == ["-", "-"]
    assert lines[3].split()[-3:-1] == ["0.25", "0.25"]
    assert len({len(line) for line in lines if line}) == 1


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([7], 0.5, 7), ([4, 1, 3, 2], 0.5, 2), (list(range(1, 101)), 0.99, 99), (list(range(1, 1002)), 0.99, 991)],
)
def test_a_percentile_is_the_value_that_so_many_are_not_above(values, share, expected):
    from tokens import percentile

    assert percentile(values, share) == expected


def test_only_the_cell_that_failed_is_left_out_and_it_says_why():
    from peerreport import Missing

    assert str(Missing(target="P", why="it broke", kind="sse", connections=64)) == (
        "not measured: P, sse at 64: it broke"
    )
    assert str(Missing(target="P", why="no Node")) == "not measured: P: no Node"


async def test_the_first_token_is_timed_and_the_stream_read_to_its_end():
    """Generator and mock against each other: no first token comes before the mock has thought."""
    from firsttoken import load
    from paced import FIRST_S, WHOLE_S
    from pacedmock import Stream

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stream, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        result = await load(f"http://127.0.0.1:{port}/v1", b"{}", "k", [], connections=3, seconds=0.1)
    assert result.faults == []
    assert len(result.first_us) == 3
    assert all(FIRST_S * 1e6 * 0.99 <= us < result.duration_us for us in result.first_us)
    assert result.duration_us >= WHOLE_S * 1e6 * 0.99


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nfirst-token",
        b"not HTTP\r\n\r\n",
    ],
    ids=["refused", "no token", "broken off", "not HTTP"],
)
async def test_a_stream_that_is_none_is_a_fault_and_no_time(answer):
    from firsttoken import load

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        result = await load(f"http://127.0.0.1:{port}/v1", b"", "k", [], connections=1, seconds=5.0)
    assert result.first_us == []
    assert len(result.faults) == 3  # it gives up soon


def test_the_streams_say_their_end_and_their_usage():
    from paced import MARK, events

    text = b"".join(events(5)).decode()
    told = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert told[-1] == "[DONE]"
    decoded = [json.loads(each) for each in told[:-1]]
    assert decoded[-1]["usage"]["completion_tokens"] == 5
    contents = [choice["delta"].get("content") for each in decoded for choice in each["choices"]]
    assert [each for each in contents if each] == [MARK, *(f" word-{number}" for number in range(1, 5))]
    assert MARK in events(5)[0].decode()


def test_the_prompt_of_a_long_call_has_its_size_and_repeats_no_line():
    from workloads import KINDS, LONG_BYTES, long_text

    lines = long_text(LONG_BYTES).splitlines()
    assert len(set(lines)) == len(lines)
    assert LONG_BYTES < len(KINDS["long"].body()) < LONG_BYTES * 1.05


def test_locks_of_peers_name_no_place_and_no_refused_release():
    import peerinstall

    for lock in (peerinstall.LITELLM_LOCK, *peerinstall.PORTKEY_LOCKS):
        text = lock.read_text(encoding="utf-8")
        assert "registry" not in text
        assert '"resolved"' not in text
    pinned = peerinstall.pins(peerinstall.LITELLM_LOCK.read_text(encoding="utf-8"))
    assert not peerinstall.REFUSED.fullmatch(pinned["litellm"])
    packages = json.loads(peerinstall.PORTKEY_LOCKS[1].read_text(encoding="utf-8"))["packages"]
    assert packages["node_modules/@hono/node-server"]["version"] == "1.14.1"  # 1.14.2 and later ones break every stream
    assert all("integrity" in each for path, each in packages.items() if path)


@pytest.mark.parametrize("version", ["1.82.7", "1.82.8", "1.107.0", "1.107.3rc1"])
def test_a_refused_release_is_not_installed(monkeypatch, tmp_path, version):
    import peerinstall
    from machine import BenchmarkError

    lock = tmp_path / "litellm.txt"
    lock.write_text(f"litellm=={version} \\\n    --hash=sha256:0\n", encoding="utf-8")
    monkeypatch.setattr(peerinstall, "LITELLM_LOCK", lock)
    with pytest.raises(BenchmarkError, match=re.escape(version)):
        peerinstall.litellm(tmp_path / "peers")
    assert not (tmp_path / "peers").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--peers", "Nobody"), "Nobody"),
        (("--parts", "plain,tea"), "tea"),
        (("--long-connections", "a"), "--long-connections"),
        (("--rounds", "0"), "--rounds"),
    ],
)
def test_senseless_options_are_refused_before_anything_starts(arguments, named):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "peers.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert named in done.stderr


@pytest.fixture
def drive(monkeypatch, tmp_path):
    """A bench whose load fails where it is told to; returns what was tried and what was found missing."""
    import peers
    from contenders import Contender
    from load import Target
    from machine import BenchmarkError, Cores
    from workloads import KINDS, Provider

    def run(who: str, failing_at: int):
        tried: list[tuple[str, int, int]] = []

        def take(target, *, connections, round_number, **_):
            tried.append((target.name, connections, round_number))
            if target.name == who and connections == failing_at:
                raise BenchmarkError("it broke")
            return samples(target.name, (round_number, 1.0, 1.0))[0]

        monkeypatch.setattr(peers, "_throughput_sample", take)
        bench = peers.Bench(
            cores=Cores(server=1, load=(0,)),
            folder=tmp_path,
            seconds=1,
            upstream={"mock": Provider(base_url="http://127.0.0.1:1/v1", pid=1)},
        )
        names = ("gateway", "Portkey")
        contenders = [
            Contender(
                name=name,
                pid=1,
                reach=lambda _, name=name: Target(name=name, url="http://127.0.0.1:1", pid=1),
                versions={},
            )
            for name in names
        ]
        for number in (1, 2):
            for connections in (1, 16):
                for contender in contenders:
                    bench.take(contender, KINDS["plain"], connections, number)
        return tried, bench

    return run


def test_a_peer_that_breaks_is_left_out_of_that_cell_alone(drive):
    tried, bench = drive("Portkey", 16)
    assert tried.count(("Portkey", 16, 1)) == 1
    assert ("Portkey", 16, 2) not in tried
    assert ("Portkey", 1, 2) in tried
    assert [str(each) for each in bench.missing] == ["not measured: Portkey, plain at 16: it broke"]
    assert len(bench.samples["plain"]) == len(tried) - 1


def test_a_gateway_that_breaks_ends_the_run(drive):
    from machine import BenchmarkError

    with pytest.raises(BenchmarkError, match="it broke"):
        drive("gateway", 16)


def test_a_server_that_answered_nothing_yet_gets_more_time_once():
    from load import LONGER, NoAnswerYetError, patiently

    given: list[int] = []

    def work(seconds: int) -> str:
        given.append(seconds)
        if len(given) == 1:
            raise NoAnswerYetError
        return "answered"

    assert patiently(work, 3) == "answered"
    assert given == [3, 3 * LONGER]


def test_a_server_that_works_on_is_waited_for(monkeypatch):
    """Two looks in a row have to find it at rest: it may only have waited for the disk in one."""
    import machine

    readings = iter([0, 50, 50, 100, 100, 100, 999])
    monkeypatch.setattr(machine, "cpu_ticks", lambda _: next(readings))
    assert machine.wait_until_idle([1])
    assert next(readings) == 999


def test_a_server_that_never_rests_is_not_waited_for_forever(monkeypatch):
    import machine

    readings = itertools.count(step=machine.TICKS_PER_S)
    monkeypatch.setattr(machine, "cpu_ticks", lambda _: next(readings))
    assert not machine.wait_until_idle([1], timeout_s=0.3)


def test_a_process_that_has_gone_uses_nothing():
    import machine

    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    assert machine.cpu_ticks(process.pid) == 0
