"""A start that fails says why, and leaves port, store and threads free for the next."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from nemo_agents.gateway import server
from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.state import Gateway


async def start(home: Path) -> None:
    """Start, answer once, and stop."""
    async with (
        server.serve(Settings(home=home, port=0, sandbox="on", log_level="error"), {}) as running,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        assert (await client.get(f"{running.url}/health/ready")).status_code == 200


async def fails_and_lets_go(home: Path, why: str) -> None:
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError, match=why):
        await start(home)
    assert {
        thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("nemo-store")
    } == set()


async def test_a_gateway_that_cannot_read_its_store_lets_go_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def load(_gateway: Gateway) -> None:
        raise ZeroDivisionError("unreadable")

    with monkeypatch.context() as patched:
        patched.setattr(Gateway, "load", load)
        await fails_and_lets_go(tmp_path, "unreadable")
    await start(tmp_path)


async def test_a_server_that_ends_before_it_listens_is_no_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def startup(_server: server._Server, sockets: object) -> None:
        raise ZeroDivisionError("no server")

    with monkeypatch.context() as patched:
        patched.setattr(server._Server, "startup", startup)
        await fails_and_lets_go(tmp_path, "no server")
    await start(tmp_path)


async def test_a_server_that_just_returns_is_no_gateway_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def serve(_server: server._Server, sockets: object) -> None:
        return None

    with monkeypatch.context() as patched:
        patched.setattr(server._Server, "serve", serve)
        with pytest.raises(RuntimeError, match="ended before it listened"):
            await start(tmp_path)
    await start(tmp_path)
