"""LiteLLM as a provider, in this process: for places that have no OpenAI-compatible endpoint of their own.

The package is an extra and takes seconds to import, so the first request imports it, in a thread. Only fields of
OpenAI's requests are passed to it: its functions take addresses, keys and callbacks among the same arguments, and a
client must not choose those. Which environment variables it reads is LiteLLM's business.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import inspect
import logging
import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse, UpstreamError
from nemo_agents.gateway.providers.known import COMPROMISED_LITELLM, LITELLM
from nemo_agents.gateway.upstream.conceal import conceal, in_environment

__all__ = ["LiteLlmProvider"]

# "Create chat completion" and "Create embeddings", API Reference, OpenAI; `thinking` is how Anthropic's is asked for.
_CHAT_FIELDS: Final = frozenset(
    {
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "modalities",
        "model",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "service_tier",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    }
)
_EMBEDDING_FIELDS: Final = frozenset({"dimensions", "encoding_format", "input", "model", "user"})
# Fields that only OpenAI's own service does something with; an SDK may send them to whomever it talks to.
_LEFT_OUT: Final = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "store"})
_MESSAGE_LENGTH_MAX: Final = 1_000
_JSON: Final = {"content-type": "application/json"}
_EVENTS: Final = {"content-type": "text/event-stream; charset=utf-8"}


class LiteLlmProvider:
    """Calls `litellm.acompletion` and `litellm.aembedding`; answers as an OpenAI-compatible provider does.

    It retries nothing, and reports to nobody. What LiteLLM tells as a failure of the far side (a status of 500 and
    more, a connection) is a failure after the send: nobody knows what of it was billed. Raises SettingsError when
    the package is not installed, or is a release that was compromised.
    """

    name: str = LITELLM

    def __init__(self) -> None:
        _check_release()
        self._module: Any = None
        self._importing = asyncio.Lock()
        self._closed = False

    async def send(self, request: ProviderRequest) -> ProviderResponse:
        """Send a request and return when its answer begins. Raises UpstreamError."""
        if self._closed:
            raise UpstreamError(f"{self.name}: the gateway has closed its connections", sent=False)
        body = msgspec.json.decode(request.body)
        wanted = _CHAT_FIELDS if request.wire == "chat" else _EMBEDDING_FIELDS
        fault = _fault(body, wanted)
        if fault is not None:
            return _error(400, fault, "invalid_request_error")
        litellm = await self._litellm()
        call = litellm.acompletion if request.wire == "chat" else litellm.aembedding
        fields = {name: value for name, value in body.items() if name in wanted}
        try:
            async with asyncio.timeout(request.first_byte_timeout_s):
                answer = await call(**fields, num_retries=0, max_retries=0, timeout=request.first_byte_timeout_s)
        except TimeoutError as error:
            what = f"{self.name}: sent no answer within {request.first_byte_timeout_s:g} s"
            raise UpstreamError(what, sent=True, timed_out=True) from error
        except Exception as error:  # noqa: BLE001 - LiteLLM raises its own, its providers' and Python's
            return self._failed(error)
        if request.stream:
            chunks = _Events(answer, self._events(answer, request))
            return ProviderResponse(status=200, headers=dict(_EVENTS), chunks=chunks)
        body = answer.model_dump(exclude_none=True, warnings=False)
        if not (body.get("usage") or {}).get("total_tokens"):
            body.pop("usage", None)  # LiteLLM's way to say that nobody told
        return ProviderResponse(status=200, headers=dict(_JSON), chunks=_once(msgspec.json.encode(body)))

    async def close(self) -> None:
        """Refuse new requests; LiteLLM keeps its connections until the process ends."""
        self._closed = True

    async def _litellm(self) -> Any:
        async with self._importing:
            if self._module is None:
                self._module = await asyncio.to_thread(_import)
        return self._module

    async def _events(self, answer: Any, request: ProviderRequest) -> AsyncGenerator[bytes]:
        """Tell the chunks of a stream as events. Raises UpstreamError when it breaks off or goes silent.

        LiteLLM ends a stream properly that its provider did not: that is a break here. And it tells tokens that it has
        counted itself, before those of the provider come: only the provider's are told, and none where it told none.
        """
        chunks = aiter(answer)
        envelope: dict[str, Any] = {}
        try:
            while True:
                async with asyncio.timeout(request.idle_timeout_s):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                told = chunk.model_dump(exclude_none=True, exclude_unset=True, warnings=False)
                choices = told.pop("choices", [])
                counted = told.pop("usage", None)
                envelope = told
                finishes = any(choice.get("finish_reason") for choice in choices)
                if finishes and answer.received_finish_reason is None:
                    self._unfinished()
                if finishes or counted is None:
                    yield _event({**told, "choices": choices})
        except TimeoutError as error:
            what = f"{self.name}: went silent in the middle of an answer within {request.idle_timeout_s:g} s"
            raise UpstreamError(what, sent=True, timed_out=True) from error
        except UpstreamError:
            raise
        except Exception as error:  # noqa: BLE001 - as in `send`
            self._broke(error)
        finally:
            await _let_go(answer)
        usage = _usage_in(answer.chunks)
        if usage is not None:
            yield _event({**envelope, "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    def _unfinished(self) -> NoReturn:
        raise UpstreamError(f"{self.name}: the stream ended before its answer was finished", sent=True)

    def _failed(self, error: Exception) -> ProviderResponse:
        """Return the answer that an exception of LiteLLM stands for. Raises UpstreamError where it stands for none."""
        status = getattr(error, "status_code", None)
        if not isinstance(status, int) or not 400 <= status < 500 or status == 408:
            self._broke(error)
        return _error(status, _told(error), _type_of(error))

    def _broke(self, error: Exception) -> NoReturn:
        what = _told(error)[:_MESSAGE_LENGTH_MAX]
        timed_out = getattr(error, "status_code", None) == 408
        raise UpstreamError(f"{self.name}: {type(error).__name__}: {what}", sent=True, timed_out=timed_out) from error


class _Events:
    """A stream's events. Closing it lets go of the far stream, also when not one event was asked for.

    A generator that has not begun is closed without running any of it, its `finally` included.
    """

    def __init__(self, answer: Any, events: AsyncGenerator[bytes]) -> None:
        self._answer = answer
        self._events = events

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
        await _let_go(self._answer)


async def _let_go(answer: Any) -> None:
    """Close what an answer of LiteLLM reads from; some of it has the one way to be closed, some the other."""
    stream = getattr(answer, "completion_stream", None)
    closer = getattr(stream, "aclose", None) or getattr(stream, "close", None)
    if closer is not None:
        closing = closer()
        if inspect.isawaitable(closing):
            await closing


def _check_release() -> None:
    try:
        version = importlib.metadata.version("litellm")
    except importlib.metadata.PackageNotFoundError as error:
        raise SettingsError(
            "[providers.litellm]: litellm is missing. Run: pip install 'nemo-agents[litellm]'"
        ) from error
    if version.startswith(COMPROMISED_LITELLM):
        raise SettingsError(
            f"[providers.litellm]: litellm {version} is a release that was compromised. Uninstall it, and rotate every "
            f"credential that this machine can read."
        )


def _import() -> Any:
    """Import LiteLLM so that it fetches nothing, reads no `.env`, and reports to nobody."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it is fetched at the import
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")  # or a file `.env` is read
    litellm: Any = importlib.import_module("litellm")
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    litellm.drop_params = False
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings")  # answers are in what they say
    for name in ("input_callback", "success_callback", "failure_callback", "callbacks"):
        getattr(litellm, name).clear()
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)  # prompts are in what it logs
    return litellm


def _fault(body: Any, wanted: frozenset[str]) -> str | None:
    """Say why a request is not passed on: it must not name a place, or bring an argument that is not OpenAI's."""
    if "://" in body.get("model", ""):
        return "A model at LiteLLM must not name an address."
    strange = sorted(body.keys() - wanted - _LEFT_OUT)
    return f"LiteLLM is not given the field {strange[0][:100]!r}. Leave it out." if strange else None


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(chunk)


def _usage_in(chunks: Sequence[Any]) -> dict[str, Any] | None:
    """Return what a provider said in its chunks that it used; None unless it said all of it.

    Some say input and output apart, others a running sum of both: the largest number of each is the last word.
    """
    said = [each.usage.model_dump(exclude_none=True, warnings=False) for each in chunks if getattr(each, "usage", None)]
    whole: dict[str, Any] = {}
    for usage in said:
        whole |= usage
    for name in ("prompt_tokens", "completion_tokens"):
        whole[name] = max((usage.get(name) or 0 for usage in said), default=0)
    if not whole["prompt_tokens"]:
        return None
    return {**whole, "total_tokens": whole["prompt_tokens"] + whole["completion_tokens"]}


def _told(error: Exception) -> str:
    """Return what an exception says, without keys: LiteLLM repeats addresses, and some hold the key."""
    return conceal(str(error), in_environment(os.environ))


def _type_of(error: Exception) -> str:
    if type(error).__name__ == "RateLimitError":
        return "rate_limit_error"
    return "authentication_error" if type(error).__name__ == "AuthenticationError" else "invalid_request_error"


def _code_of(message: str) -> str | None:
    return "context_length_exceeded" if "ContextWindowExceededError" in message else None


def _error(status: int, message: str, type_: str) -> ProviderResponse:
    content: Mapping[str, Any] = {
        "error": {"message": message[:_MESSAGE_LENGTH_MAX], "type": type_, "param": None, "code": _code_of(message)}
    }
    return ProviderResponse(status=status, headers=dict(_JSON), chunks=_once(msgspec.json.encode(content)))


async def _once(raw: bytes) -> AsyncIterator[bytes]:
    yield raw
