"""Responses: OpenAI's `POST /v1/responses`.

Source: OpenAI API reference, "Responses" and "Responses, streaming events". A stream ends with one of three events,
which holds the whole response and its usage; `[DONE]` is not part of this wire, though some providers send it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.usage import Usage, usage_from_openai
from nemo_agents.policy.wires.base import PreparedCap, Tally, Wire, WireName
from nemo_agents.policy.wires.checks import bad, check_list, check_stream, foreign_tools, function_name
from nemo_agents.policy.wires.envelope import openai_error
from nemo_agents.policy.wires.responses_events import error_event, sse
from nemo_agents.policy.wires.responses_tally import ResponsesTally, end_reason

__all__ = ["RESPONSES"]

_ITEMS_MAX: Final = 10_000
_STANDS_FOR_INPUT: Final = ("instructions", "prompt", "previous_response_id", "conversation")
_OTHER_CAPS: Final = ("max_tokens", "max_completion_tokens")
_CLIENT_TOOLS: Final = ("function", "custom")
_TOOL_ITEMS: Final = ("additional_tools", "tool_search_output")
"""Items of the input that offer further tools."""
_SERVER_ITEMS: Final = ("mcp_approval_response", "mcp_list_tools")
"""Items of the input by which the provider goes on to call another server's tools."""


class _Responses:
    """See `Wire`."""

    name: WireName = "responses"
    path = "/v1/responses"
    upstream_path = "/responses"
    generates = True

    def check(self, body: Mapping[str, Any]) -> Refusal | None:
        background = body.get("background")
        if background is not None and background is not False:
            return bad(
                "`background` is not served here: an answer that is fetched later cannot be settled against the "
                "budget that pays for it. Leave it out, and use `stream` for a long answer.",
                "background",
            )
        return _check_input(body) or check_stream(body) or check_list(body, "tools")

    def prompt(self, body: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Any]]:
        instructions, given = body.get("instructions"), body.get("input")
        parts: list[Any] = [] if instructions is None else [{"role": "system", "content": instructions}]
        if isinstance(given, str):
            parts.append({"role": "user", "content": given})
        else:
            parts += given or ()
        return ("instructions", "input"), parts

    def tools(self, body: Mapping[str, Any]) -> list[str | None]:
        names = _names(body.get("tools")) + foreign_tools(body, "functions")
        given = body.get("input")
        for item in given if isinstance(given, list) else ():
            if isinstance(item, dict) and item.get("type") in _TOOL_ITEMS:
                names += _names(item.get("tools"))
            elif isinstance(item, dict) and item.get("type") in _SERVER_ITEMS:
                names.append(None)
        if body.get("prompt") is not None:  # it is stored at the provider, and nobody here sees the tools it brings
            names.append(None)
        return names

    def prepare(
        self, body: Mapping[str, Any], *, model: str, cap: PreparedCap, tier: str | None, stream: bool
    ) -> dict[str, Any]:
        ready = dict(body)
        ready["model"] = model
        if tier is not None:
            ready["service_tier"] = tier
        if not stream:
            ready.pop("stream_options", None)  # an error where there is no stream
        for field in _OTHER_CAPS:
            ready.pop(field, None)
        ready["max_output_tokens"] = cap.tokens
        return ready

    def is_error(self, answer: Mapping[str, Any]) -> bool:
        return answer.get("error") is not None or answer.get("status") in ("failed", "cancelled")

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return usage_from_openai(answer.get("usage"), service_tier=answer.get("service_tier"))

    def answer_of(self, answer: Mapping[str, Any]) -> tuple[object, str | None]:
        output = answer.get("output")
        return (output if isinstance(output, list) and output else None), end_reason(answer)

    def tally(self, body: Mapping[str, Any], *, answers: int) -> Tally:
        del body, answers  # there is one answer, and its usage comes unasked
        return ResponsesTally()

    def error_body(self, refusal: Refusal, request_id: str) -> dict[str, Any]:
        return openai_error(refusal, request_id)

    def stream_error(self, refusal: Refusal, request_id: str) -> bytes:
        envelope = openai_error(refusal, request_id)
        return sse(error_event(envelope["error"]) | envelope)


def _check_input(body: Mapping[str, Any]) -> Refusal | None:
    given = body.get("input")
    if given in (None, "", []):
        if any(body.get(name) not in (None, "") for name in _STANDS_FOR_INPUT):
            return None
        return bad("`input` must not be empty: a text, or a list of items.", "input")
    if isinstance(given, str):
        return None
    if not isinstance(given, list):
        return bad("`input` must be a text or a list of items.", "input")
    if len(given) > _ITEMS_MAX:
        return bad(f"`input` holds more than {_ITEMS_MAX}.", "input")
    if not all(isinstance(item, dict) for item in given):
        return bad("Each of `input` must be an object: a message, or another item.", "input")
    return None


def _names(tools: object) -> list[str | None]:
    """Return the names of the tools in a list; a namespace stands for the functions in it."""
    names: list[str | None] = []
    for tool in tools if isinstance(tools, list) else ():
        inner = tool.get("tools") if isinstance(tool, dict) and tool.get("type") == "namespace" else None
        names += [_name(each) for each in inner] if isinstance(inner, list) else [_name(tool)]
    return names


def _name(tool: object) -> str | None:
    is_clients = isinstance(tool, dict) and tool.get("type", "function") in _CLIENT_TOOLS
    return function_name(tool) if is_clients else None


RESPONSES: Final[Wire] = _Responses()
"""What agents' SDKs of OpenAI speak by default."""
