"""Completions: OpenAI's legacy `POST /v1/completions`, a text that a model goes on writing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.stream import StreamTally, answer_of
from nemo_agents.policy.usage import Usage, usage_from_openai
from nemo_agents.policy.wires.base import PreparedCap, Tally, Wire, WireName
from nemo_agents.policy.wires.chat import wants_usage, with_usage
from nemo_agents.policy.wires.checks import bad, check_stream, foreign_tools
from nemo_agents.policy.wires.envelope import openai_error, openai_stream_error

__all__ = ["COMPLETIONS"]

_FOREIGN_CAPS: Final = ("max_completion_tokens", "max_output_tokens")


class _Completions:
    """See `Wire`."""

    name: WireName = "completions"
    path = "/v1/completions"
    upstream_path = "/completions"
    generates = True

    def check(self, body: Mapping[str, Any]) -> Refusal | None:
        if not _is_prompt(body.get("prompt")):
            return bad("`prompt` must be a text, a list of texts, a list of tokens, or a list of such lists.", "prompt")
        return check_stream(body)

    def prompt(self, body: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Any]]:
        prompt = body.get("prompt")
        several = isinstance(prompt, list) and not _are_tokens(prompt)
        return ("prompt",), [] if prompt is None else list(prompt) if several else [prompt]

    def tools(self, body: Mapping[str, Any]) -> list[str | None]:
        # The wire has none: what a provider makes of such a field is its own.
        return [None for _ in foreign_tools(body, "tools", "functions")]

    def prepare(
        self, body: Mapping[str, Any], *, model: str, cap: PreparedCap, tier: str | None, stream: bool
    ) -> dict[str, Any]:
        del tier  # the wire has no service tiers
        ready = dict(body)
        ready["model"] = model
        with_usage(ready, stream=stream)
        for name in _FOREIGN_CAPS:
            ready.pop(name, None)
        ready["max_tokens"] = cap.tokens
        return ready

    def is_error(self, answer: Mapping[str, Any]) -> bool:
        return answer.get("error") is not None

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return usage_from_openai(answer.get("usage"), service_tier=answer.get("service_tier"))

    def answer_of(self, answer: Mapping[str, Any]) -> tuple[object, str | None]:
        return answer_of(answer)

    def tally(self, body: Mapping[str, Any], *, answers: int) -> Tally:
        return _TextTally(hide_usage=not wants_usage(body), answers=answers, echo=body.get("echo") is True)

    def error_body(self, refusal: Refusal, request_id: str) -> dict[str, Any]:
        return openai_error(refusal, request_id)

    def stream_error(self, refusal: Refusal, request_id: str) -> bytes:
        return openai_stream_error(refusal, request_id)


class _TextTally(StreamTally):
    """Gathers the stream of so many texts: chunks like a chat's, with `text` in place of a delta."""

    def __init__(self, *, hide_usage: bool, answers: int, echo: bool) -> None:
        super().__init__(hide_usage=hide_usage, answers=answers)
        self._echo = echo

    def see(self, chunk: object) -> bool:
        """Take in one decoded chunk; say whether the client gets to see it."""
        if isinstance(chunk, dict) and isinstance(chunk.get("choices"), list):
            chunk = {**chunk, "choices": [_with_delta(choice) for choice in chunk["choices"]]}
        seen = super().see(chunk)
        if self._echo:
            self.tokens_seen = 0  # what passes may be the prompt, which is no output
        return seen

    @property
    def answer(self) -> object:
        """The text so far, or a list of them when several were asked for; None without any."""
        said = super().answer
        texts = [_text(message) for message in (said if isinstance(said, list) else [said]) if message is not None]
        return texts[0] if len(texts) == 1 else (texts or None)


def _with_delta(choice: Any) -> Any:
    return {**choice, "delta": {"content": choice.get("text")}} if isinstance(choice, dict) else choice


def _text(message: Any) -> str:
    text: str = message.get("content", "")
    return text


def _is_prompt(prompt: object) -> bool:
    """Say whether this can be a prompt; None is one: the model begins a text of its own."""
    if prompt is None or isinstance(prompt, str):
        return True
    if not isinstance(prompt, list) or not prompt:
        return False
    if _are_tokens(prompt) or all(isinstance(text, str) for text in prompt):
        return True
    return all(isinstance(tokens, list) and bool(tokens) and _are_tokens(tokens) for tokens in prompt)


def _are_tokens(values: list[Any]) -> bool:
    return all(type(value) is int for value in values)


COMPLETIONS: Final[Wire] = _Completions()
"""The wire of models that complete a text."""
