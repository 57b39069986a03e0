"""The sandbox as a provider: decides an answer, then plays it with the delays and faults it was told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final

from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse, UpstreamError
from nemo_agents.gateway.sandbox import wire
from nemo_agents.gateway.sandbox.replies import decide
from nemo_agents.gateway.sandbox.request import (
    BadRequest,
    EmbeddingRequest,
    read_chat,
    read_embedding,
    read_object,
)
from nemo_agents.gateway.sandbox.script import SandboxSettings, Script
from nemo_agents.gateway.sandbox.tokens import dump

__all__ = ["SandboxProvider"]

_CUT: Final = 64  # bytes in a chunk of a plain body that is going to break off
_ROWS_PER_TURN: Final = 16  # embeddings computed before other tasks get a turn


class SandboxProvider:
    """A stand-in for a paid API that answers in this process; see `gateway.sandbox`.

    `clock` gives seconds since the epoch for the field `created`, the only part of an answer that is not a function
    of the request's bytes. `sleep` waits so many seconds. Rules with `times` count down for the provider's life.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[Any]],
        settings: SandboxSettings | None = None,
    ) -> None:
        self.name = "sandbox"
        self._clock = clock
        self._sleep = sleep
        self._settings = settings or SandboxSettings()
        self._left = [rule.times for rule in self._settings.script]

    async def send(self, request: ProviderRequest) -> ProviderResponse:
        """Answer `/chat/completions` and `/embeddings`; anything else is 404. Raises UpstreamError as scripted."""
        try:
            body = read_object(request.body)
            match request.path:
                case "/chat/completions":
                    return await self._chat(request, body)
                case "/embeddings":
                    return await self._embeddings(request, body)
                case _:
                    return _error(404, f"Unknown request URL: POST {request.path[:100]}.")
        except BadRequest as error:
            return _error(400, error.message, param=error.param)
        except RecursionError:
            return _error(400, "The body of the request is nested too deep.")

    async def close(self) -> None:
        """Nothing is held open."""

    async def _chat(self, request: ProviderRequest, body: dict[str, Any]) -> ProviderResponse:
        chat = read_chat(body, request.body)
        script = self._script(chat.script, (chat.model, chat.short_model), chat.last_user_text)
        failed = await self._before_head(request, script)
        if failed is not None:
            return failed
        reply = decide(chat, script)
        created = int(self._clock())
        if chat.stream:
            events = wire.events(chat, reply, created=created)
            return self._answer(request, script, events, chat.digest, stream=True)
        whole = wire.completion(chat, reply, created=created)
        return self._answer(request, script, _chunked(whole, script), chat.digest, stream=False)

    async def _embeddings(self, request: ProviderRequest, body: dict[str, Any]) -> ProviderResponse:
        asked = read_embedding(body, request.body)
        text = next((item for item in asked.inputs if isinstance(item, str)), "")
        script = self._script(asked.script, (asked.model, asked.model.rpartition("/")[2]), text)
        failed = await self._before_head(request, script)
        if failed is not None:
            return failed
        answer = wire.embedding_head(asked)
        if script.usage == "missing":
            del answer["usage"]
        elif isinstance(script.usage, dict):
            answer["usage"] = {**answer["usage"], **script.usage}
        answer["data"] = await _rows(asked)
        return self._answer(request, script, _chunked(dump(answer).encode(), script), asked.digest, stream=False)

    def _script(self, asked: Script, names: tuple[str, ...], last_user_text: str) -> Script:
        """Return what the request asks for, over the first rule that matches and has turns left."""
        for number, rule in enumerate(self._settings.script):
            left = self._left[number]
            if left != 0 and rule.matches(names, last_user_text):
                self._left[number] = None if left is None else left - 1
                return asked.over(rule.script)
        return asked

    async def _before_head(self, request: ProviderRequest, script: Script) -> ProviderResponse | None:
        """Wait as told; return an error answer when one is scripted."""
        latency_ms = self._settings.latency_ms if script.latency_ms is None else script.latency_ms
        silent = script.hang is True and script.drop_after_chunks is None
        await self._wait(None if silent else latency_ms / 1000, request.first_byte_timeout_s, "sent no answer")
        if script.status is None:
            return None
        return _error(
            script.status,
            script.error or f"[sandbox] scripted error {script.status}",
            retry_after_s=script.retry_after_s,
        )

    async def _wait(self, delay_s: float | None, timeout_s: float, what: str) -> None:
        """Sleep, but no longer than the caller would wait on a socket; None is forever."""
        if delay_s is None or delay_s > timeout_s:
            await self._sleep(timeout_s)
            raise UpstreamError(f"the sandbox {what} within {timeout_s:g} s", sent=True, timed_out=True)
        if delay_s > 0:
            await self._sleep(delay_s)

    def _answer(
        self, request: ProviderRequest, script: Script, chunks: Iterable[bytes], digest: str, *, stream: bool
    ) -> ProviderResponse:
        content_type = "text/event-stream; charset=utf-8" if stream else "application/json"
        return ProviderResponse(
            status=200,
            headers={"content-type": content_type, "x-request-id": f"req_{digest[:32]}"},
            chunks=self._play(request, script, chunks, stream=stream),
        )

    async def _play(
        self, request: ProviderRequest, script: Script, chunks: Iterable[bytes], *, stream: bool
    ) -> AsyncIterator[bytes]:
        delay_ms = self._settings.chunk_delay_ms if script.chunk_delay_ms is None else script.chunk_delay_ms
        for number, chunk in enumerate(chunks):
            if number == script.drop_after_chunks:
                if script.hang:
                    await self._wait(None, request.idle_timeout_s, "fell silent")
                raise UpstreamError("the sandbox broke off the answer, as scripted", sent=True)
            if stream:
                await self._wait(delay_ms / 1000, request.idle_timeout_s, "fell silent")
            yield chunk


async def _rows(request: EmbeddingRequest) -> list[dict[str, Any]]:
    rows = []
    for index in range(len(request.inputs)):
        if index and index % _ROWS_PER_TURN == 0:
            await asyncio.sleep(0)
        rows.append(wire.embedding_row(request, index))
    return rows


def _chunked(body: bytes, script: Script) -> list[bytes]:
    if script.drop_after_chunks is None:
        return [body]
    return [body[at : at + _CUT] for at in range(0, len(body), _CUT)]


def _error(
    status: int, message: str, *, param: str | None = None, retry_after_s: float | None = None
) -> ProviderResponse:
    headers = {"content-type": "application/json"}
    if retry_after_s is not None:
        headers["retry-after"] = f"{retry_after_s:g}"

    async def chunks() -> AsyncIterator[bytes]:
        yield wire.error_body(status, message, param=param)

    return ProviderResponse(status=status, headers=headers, chunks=chunks())
