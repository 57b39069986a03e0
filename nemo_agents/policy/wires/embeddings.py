"""Embeddings: OpenAI's `POST /v1/embeddings`. Nothing is generated, so there is no cap and no stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.stream import StreamTally
from nemo_agents.policy.usage import Usage, usage_from_openai
from nemo_agents.policy.wires.base import PreparedCap, Tally, Wire, WireName
from nemo_agents.policy.wires.checks import bad, foreign_tools
from nemo_agents.policy.wires.envelope import openai_error, openai_stream_error

__all__ = ["EMBEDDINGS"]


class _Embeddings:
    """See `Wire`."""

    name: WireName = "embeddings"
    path = "/v1/embeddings"
    upstream_path = "/embeddings"
    generates = False

    def check(self, body: Mapping[str, Any]) -> Refusal | None:
        return None if body.get("input") not in (None, "", []) else bad("`input` must not be empty.", "input")

    def prompt(self, body: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Any]]:
        return ("input",), [body["input"]]

    def tools(self, body: Mapping[str, Any]) -> list[str | None]:
        # The wire has none: what a provider makes of such a field is its own.
        return [None for _ in foreign_tools(body, "tools", "functions")]

    def prepare(
        self, body: Mapping[str, Any], *, model: str, cap: PreparedCap, tier: str | None, stream: bool
    ) -> dict[str, Any]:
        del cap, tier, stream  # nothing is generated
        return {**body, "model": model}

    def is_error(self, answer: Mapping[str, Any]) -> bool:
        return answer.get("error") is not None

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return usage_from_openai(answer.get("usage"), output=False, service_tier=answer.get("service_tier"))

    def answer_of(self, answer: Mapping[str, Any]) -> tuple[object, str | None]:
        del answer  # vectors are nothing to read
        return None, None

    def tally(self, body: Mapping[str, Any], *, answers: int) -> Tally:
        del body
        return StreamTally(hide_usage=False, answers=answers)

    def error_body(self, refusal: Refusal, request_id: str) -> dict[str, Any]:
        return openai_error(refusal, request_id)

    def stream_error(self, refusal: Refusal, request_id: str) -> bytes:
        return openai_stream_error(refusal, request_id)


EMBEDDINGS: Final[Wire] = _Embeddings()
"""Texts in, vectors out."""
