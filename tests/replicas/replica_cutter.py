"""A TCP proxy between the gateways and a server of theirs, that loses connections on command."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Cutter:
    """Passes bytes on, until it is told otherwise. Its methods may be called from any thread."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._loop = asyncio.new_event_loop()
        self._streams: set[asyncio.StreamWriter] = set()
        self._swallowing = False
        self._refusing = False
        self.port = 0
        self.cuts = 0  # connections that were lost by it

    def drop(self) -> None:
        """Cut every connection now, whatever is on its way."""
        self._do(self._cut_all)

    def swallow(self) -> None:
        """From now on pass on what is asked, and cut the connection instead of passing on what is answered.

        Whoever asked for a commit cannot know whether it was made.
        """
        self._do(lambda: setattr(self, "_swallowing", True))

    def refuse(self) -> None:
        """Cut every connection, and hang up on new ones."""
        self._do(lambda: setattr(self, "_refusing", True))
        self.drop()

    def mend(self) -> None:
        """Pass everything on again; what was cut stays cut."""
        self._do(lambda: (setattr(self, "_swallowing", False), setattr(self, "_refusing", False)))

    def _do(self, what: object) -> None:
        done = threading.Event()

        def call() -> None:
            what()  # type: ignore[operator]
            done.set()

        self._loop.call_soon_threadsafe(call)
        assert done.wait(10)

    def _cut_all(self) -> None:
        self.cuts += len(self._streams) // 2
        for stream in self._streams:
            stream.transport.abort()
        self._streams.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._streams |= {writer, back}
        await asyncio.gather(self._pass(reader, back, answers=False), self._pass(there, writer, answers=True))
        for stream in (writer, back):
            self._streams.discard(stream)
            stream.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                if answers and self._swallowing:
                    self.cuts += 1
                    break
                sink.write(data)
                await sink.drain()
        sink.transport.abort()

    def _run(self, ready: threading.Event) -> None:
        async def listen() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        self._loop.run_until_complete(listen())
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))


@contextmanager
def cutter_before(port: int) -> Iterator[Cutter]:
    """Run a cutter before a server on this port."""
    cutter, ready = Cutter(port), threading.Event()
    thread = threading.Thread(target=cutter._run, args=(ready,), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield cutter
    finally:
        cutter._loop.call_soon_threadsafe(cutter._loop.stop)
        thread.join(10)
