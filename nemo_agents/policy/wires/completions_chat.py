"""A legacy completion, told as a chat: the prompt is what the user says, the answer is the text.

A chat model answers a prompt where a completion model goes on writing it. What only makes sense for the latter
(`suffix`, `echo`), or has another form in a chat (`logprobs`, tokens), is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nemo_agents.policy.wires.base import StreamTranslation, Translation, UntranslatableError
from nemo_agents.policy.wires.chat import wants_usage
from nemo_agents.policy.wires.chat_answer import texts_of

__all__ = ["COMPLETIONS_AS_CHAT"]

_REMEDY: Final = "or ask for a model whose provider offers text completions"
_NOT_IN_A_CHAT: Final[Mapping[str, tuple[Any, ...]]] = {
    "suffix": (None, ""),
    "echo": (None, False),
    "best_of": (None, 1),
    "logprobs": (None, False),
}
"""Fields that no chat has, with the values that say nothing."""
_FINISH_REASONS: Final = frozenset({"stop", "length", "content_filter"})
_KEPT: Final = ("created", "model", "system_fingerprint")


class _CompletionsAsChat:
    """See `Translation`."""

    def request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        for name, nothing in _NOT_IN_A_CHAT.items():
            value = body.get(name)
            if not any(value is each or (type(value) is type(each) and value == each) for each in nothing):
                raise UntranslatableError(
                    f"`{name}` has no counterpart in Chat Completions, which is how this model is reached. Leave it "
                    f"out, {_REMEDY}.",
                    param=name,
                )
        chat = {name: value for name, value in body.items() if name not in _NOT_IN_A_CHAT and name != "prompt"}
        chat["messages"] = [{"role": "user", "content": _prompt(body.get("prompt"))}]
        return chat

    def answer(self, chat: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
        del body
        choices = chat.get("choices")
        told = {**_head(chat), "choices": _choices(choices, "message")}
        return told if chat.get("usage") is None else {**told, "usage": chat["usage"]}

    def stream(self, body: Mapping[str, Any]) -> StreamTranslation:
        return _TextStream(tell_usage=wants_usage(body))


class _TextStream:
    """See `StreamTranslation`."""

    def __init__(self, *, tell_usage: bool) -> None:
        self._tell_usage = tell_usage
        self._failed = False

    def feed(self, chunk: object) -> bytes:
        """Return the chunk as one of texts: nothing for one that only says whose turn it is."""
        if not isinstance(chunk, dict) or self._failed:
            return b""
        if chunk.get("error") is not None:
            self._failed = True
            return _event({"error": chunk["error"]})
        choices = [c for c in _choices(chunk.get("choices"), "delta") if c["text"] or c["finish_reason"]]
        usage = chunk.get("usage") if self._tell_usage else None
        if not choices and usage is None:
            return b""
        told = {**_head(chunk), "choices": choices}
        return _event(told if usage is None else {**told, "usage": usage})

    def end(self) -> bytes:
        """Return `[DONE]`."""
        return b"" if self._failed else b"data: [DONE]\n\n"


def _prompt(prompt: object) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    raise UntranslatableError(
        "A chat has one prompt, and it is text: send one request for each, with tokens decoded, " + _REMEDY + ".",
        param="prompt",
    )


def _head(chat: Mapping[str, Any]) -> dict[str, Any]:
    given = chat.get("id")
    chat_id = given.removeprefix("chatcmpl-") if isinstance(given, str) else ""
    kept = {name: chat[name] for name in _KEPT if chat.get(name) is not None}
    return {"id": f"cmpl-{chat_id}", "object": "text_completion", **kept}


def _choices(choices: object, where: str) -> list[dict[str, Any]]:
    """Return a chat's choices, or those of a chunk, as texts."""
    told = []
    for n, choice in enumerate(choices if isinstance(choices, list) else ()):
        if not isinstance(choice, dict):
            continue
        said, reason = choice.get(where), choice.get("finish_reason")
        if isinstance(reason, str) and reason not in _FINISH_REASONS:
            reason = "stop"
        text = texts_of(said)[1] if isinstance(said, dict) else ""
        told.append({"text": text, "index": choice.get("index", n), "logprobs": None, "finish_reason": reason or None})
    return told


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


COMPLETIONS_AS_CHAT: Final[Translation] = _CompletionsAsChat()
"""How a provider that speaks only Chat Completions answers clients of the legacy completions."""
