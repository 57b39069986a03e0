"""Chat Completions: OpenAI's `POST /v1/chat/completions`, the wire that most providers speak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.stream import StreamTally, answer_of
from nemo_agents.policy.usage import Usage, usage_from_openai
from nemo_agents.policy.wires.base import PreparedCap, Tally, Wire, WireName
from nemo_agents.policy.wires.checks import check_list, check_messages, check_stream, function_name
from nemo_agents.policy.wires.envelope import openai_error, openai_stream_error

__all__ = ["CHAT", "wants_usage", "with_usage"]


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Say whether the client asked for the usage at the end of its stream."""
    return (body.get("stream_options") or {}).get("include_usage") is True


def with_usage(body: dict[str, Any], *, stream: bool) -> None:
    """Ask for the usage at the end of a stream; where there is no stream, its options are an error to OpenAI."""
    if stream:
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    else:
        body.pop("stream_options", None)


class _Chat:
    """See `Wire`."""

    name: WireName = "chat"
    path = "/v1/chat/completions"
    upstream_path = "/chat/completions"
    generates = True

    def check(self, body: Mapping[str, Any]) -> Refusal | None:
        return check_messages(body) or check_stream(body) or check_list(body, "tools") or check_list(body, "functions")

    def prompt(self, body: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Any]]:
        return ("messages",), body["messages"]

    def tools(self, body: Mapping[str, Any]) -> list[str | None]:
        # A tool of another type than `function` is the provider's, whatever else it says.
        names = [
            function_name(tool.get("function"))
            if isinstance(tool, dict) and tool.get("type", "function") == "function"
            else None
            for tool in body.get("tools") or ()
        ]
        names += [function_name(function) for function in body.get("functions") or ()]  # what tools were before
        return names

    def prepare(
        self, body: Mapping[str, Any], *, model: str, cap: PreparedCap, tier: str | None, stream: bool
    ) -> dict[str, Any]:
        ready = dict(body)
        ready["model"] = model
        if tier is not None:
            ready["service_tier"] = tier
        with_usage(ready, stream=stream)
        ready.pop("max_tokens", None)
        ready.pop("max_completion_tokens", None)
        ready[cap.chat_field] = cap.tokens
        return ready

    def is_error(self, answer: Mapping[str, Any]) -> bool:
        return answer.get("error") is not None

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return usage_from_openai(answer.get("usage"), service_tier=answer.get("service_tier"))

    def answer_of(self, answer: Mapping[str, Any]) -> tuple[object, str | None]:
        return answer_of(answer)

    def tally(self, body: Mapping[str, Any], *, answers: int) -> Tally:
        return StreamTally(hide_usage=not wants_usage(body), answers=answers)

    def error_body(self, refusal: Refusal, request_id: str) -> dict[str, Any]:
        return openai_error(refusal, request_id)

    def stream_error(self, refusal: Refusal, request_id: str) -> bytes:
        return openai_stream_error(refusal, request_id)


CHAT: Final[Wire] = _Chat()
"""The one wire into which others are translated."""
