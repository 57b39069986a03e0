"""A gateway in a thread of its own, for programs that are not asynchronous: the demo, tests, notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from nemo_agents.gateway.server import Running, new_event_loop, serve
from nemo_agents.gateway.settings import Settings

__all__ = ["serve_in_thread"]


@contextmanager
def serve_in_thread(settings: Settings, environ: Mapping[str, str]) -> Iterator[Running]:
    """Serve a gateway while the block runs. What keeps it from starting is raised here, such as SettingsError."""
    started = threading.Event()
    state: dict[str, Running] = {}
    failure: list[BaseException] = []
    loop = new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        async with serve(settings, environ) as running:
            state["running"] = running
            started.set()
            await stop.wait()

    def target() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(main())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
            failure.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
            started.set()

    thread = threading.Thread(target=target, name="nemo-gateway", daemon=True)
    thread.start()
    started.wait()
    if failure:
        thread.join()
        raise failure[0]
    try:
        yield state["running"]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
    if failure:
        raise failure[0]
