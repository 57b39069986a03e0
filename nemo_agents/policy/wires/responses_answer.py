"""A chat completion, whole or as a stream, told as a response.

Source: OpenAI API reference, "Responses" and "Responses, streaming events". A response is a list of items, one after
the other: reasoning, a message of one or more parts, calls of tools. A chat completion has them all side by side.
Reasoning comes in `reasoning_content` (DeepSeek, vLLM) or `reasoning` (OpenRouter, Groq).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nemo_agents.policy.usage import Usage, usage_from_openai
from nemo_agents.policy.wires.responses_events import INCOMPLETE_REASONS, error_event, error_text, sse
from nemo_agents.policy.wires.responses_items import CallItem, TextItem

__all__ = ["Retelling", "answer_of_chat"]

_ECHOED: Final = (
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "safety_identifier",
    "temperature",
    "top_logprobs",
    "top_p",
    "user",
)


def answer_of_chat(chat: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat completion as the response to the request `body`."""
    choices = chat.get("choices")
    whole = [
        {**choice, "delta": choice.get("message")}
        for choice in (choices if isinstance(choices, list) else ())
        if isinstance(choice, dict)
    ]
    story = _Story(body)
    story.take({**chat, "choices": whole})
    response: dict[str, Any] = story.finish()[-1]["response"]
    return response


class Retelling:
    """The stream of a chat completion, told as the stream of a response. See `StreamTranslation`.

    It wants every chunk, the one that holds the usage as well. Of an error it makes the last event that there is.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._story = _Story(body)

    def feed(self, chunk: object) -> bytes:
        """Return the events that one decoded chunk (None: not JSON) amounts to; b"" for none."""
        return b"".join(map(sse, self._story.take(chunk)))

    def end(self) -> bytes:
        """Return the last events, once the chat's stream has said that it is over."""
        return b"".join(map(sse, self._story.finish()))


class _Story:
    """The events that a chat completion amounts to, however its pieces come.

    Items follow one another as what they hold does: a text that goes on after something else has begun is a further
    item.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body
        self._head: dict[str, Any] | None = None
        self._id = ""
        self._items: list[TextItem | CallItem] = []
        self._calls: dict[int, CallItem] = {}  # by the index that the chat gives them
        self._call_ids: set[str] = set()
        self._events: list[dict[str, Any]] = []
        self._told = 0  # events, ever
        self._finish_reason: object = None
        self._usage: object = None
        self._service_tier: object = None
        self._over = False

    def take(self, chunk: object) -> list[dict[str, Any]]:
        """Take in a decoded chunk; return the events that it amounts to."""
        if not isinstance(chunk, dict) or self._over:
            return []
        if chunk.get("error") is not None:
            self._fail(chunk["error"])
            return self._take_events()
        if self._head is None:
            self._begin(chunk)
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        if chunk.get("service_tier") is not None:
            self._service_tier = chunk["service_tier"]
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                self._take_choice(choice)
        return self._take_events()

    def finish(self) -> list[dict[str, Any]]:
        """Return the events that end it; the last holds the whole response. Nothing is left to say after an error."""
        if self._over:
            return []
        if self._head is None:
            self._begin({})
        assert self._head is not None
        self._over = True
        reason = INCOMPLETE_REASONS.get(str(self._finish_reason))
        for item in self._items:
            cut = reason is not None and item is self._items[-1]
            item.close(self._emit, "incomplete" if cut else "completed")
        status = "completed" if reason is None else "incomplete"
        response = {
            **self._head,
            "status": status,
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": [item.whole() for item in self._items],
            "service_tier": self._service_tier,
            "usage": _usage(usage_from_openai(self._usage)),
        }
        self._emit(f"response.{status}", response=response)
        return self._take_events()

    def _emit(self, kind: str, /, **fields: Any) -> None:
        self._events.append({"type": kind, "sequence_number": self._told, **fields})
        self._told += 1

    def _take_events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def _begin(self, chunk: Mapping[str, Any]) -> None:
        self._head = _head(chunk, self._body)
        self._id = self._head["id"].removeprefix("resp_")
        self._emit("response.created", response=self._head)
        self._emit("response.in_progress", response=self._head)

    def _fail(self, error: object) -> None:
        self._over = True
        told = error if isinstance(error, dict) else {"message": error_text(error)}
        self._events.append(error_event(told, sequence_number=self._told))

    def _take_choice(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            logprobs = choice.get("logprobs")
            content = logprobs.get("content") if isinstance(logprobs, dict) else None
            self._say("reasoning", "reasoning_text", delta.get("reasoning_content") or delta.get("reasoning"))
            self._say("message", "output_text", delta.get("content"), content if isinstance(content, list) else ())
            self._say("message", "refusal", delta.get("refusal"))
            calls = delta.get("tool_calls")
            for position, part in enumerate(calls if isinstance(calls, list) else ()):
                if isinstance(part, dict):
                    self._call(part, position)
        if choice.get("finish_reason"):
            self._finish_reason = choice["finish_reason"]

    def _say(self, kind: str, part: str, piece: object, logprobs: Any = ()) -> None:
        if not isinstance(piece, str) or not piece:
            return
        last = self._items[-1] if self._items else None
        if not isinstance(last, TextItem) or last.kind != kind:
            self._turn()
            last = TextItem(kind, self._id, len(self._items))
            self._items.append(last)
        last.say(self._emit, part, piece, logprobs)

    def _call(self, part: Mapping[str, Any], position: int) -> None:
        given, said_id = part.get("index"), part.get("id")
        index = given if isinstance(given, int) else position
        kind = "custom" if isinstance(part.get("custom"), dict) else "function"
        told = part.get(kind)
        says = told if isinstance(told, dict) else {}
        name, text = says.get("name"), says.get("input" if kind == "custom" else "arguments")
        call = self._calls.get(index)
        if call is None or (call.names_another(said_id) and name):  # Gemini gives all of its calls the index 0
            self._turn()
            call = CallItem(kind, self._id, len(self._items))
            self._items.append(call)
            self._calls[index] = call
        call.identify(said_id, self._call_ids)
        if isinstance(name, str):
            call.add_name(name)
        if isinstance(text, str) and text:
            call.say(self._emit, text)

    def _turn(self) -> None:
        """Close the last item, if it is over now that another one begins."""
        if self._items:
            self._items[-1].turn(self._emit)


def _head(chunk: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the response as it begins. Its id is the chat's own, and its time: neither clock nor dice are needed."""
    created = chunk.get("created")
    created_at = created if isinstance(created, (int, float)) else 0
    reasoning, text = body.get("reasoning"), body.get("text")
    asked = reasoning if isinstance(reasoning, dict) else {}
    return {
        "id": f"resp_{_plain_id(chunk.get('id'), created_at)}",
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "model": chunk.get("model") or body.get("model"),
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "reasoning": {"effort": asked.get("effort"), "summary": asked.get("summary")},
        "service_tier": None,
        "store": False,
        "text": {"format": {"type": "text"}} | (text if isinstance(text, dict) else {}),
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "truncation": "disabled",
        "usage": None,
        **{name: body.get(name) for name in _ECHOED},
    }


def _plain_id(given: object, created_at: float) -> str:
    return given.removeprefix("chatcmpl-") if isinstance(given, str) and given else str(created_at)


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
