"""A request of Anthropic's Messages, told as Chat Completions.

What only Anthropic's own API can do is refused by its path. What is advice to Anthropic's machinery (marks for its
cache, `thinking`, `context_management`) is left out, and so are earlier thoughts, which no other model can read. A last
message of the assistant's is passed on as it is; most providers answer it anew where Claude would go on writing it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from nemo_agents.policy.wires.base import StreamTranslation, Translation, UntranslatableError
from nemo_agents.policy.wires.messages_answer import MessageStream, message_of

__all__ = ["MESSAGES_AS_CHAT"]

_ANTHROPICS_OWN: Final = ("container", "mcp_servers", "fallbacks")
_HARMLESS: Final = {"inference_geo": "global", "speed": "standard"}
"""Fields that say nothing with this value, and with any other what no chat completion has words for."""
_TOLD: Final = frozenset(
    {
        "messages",
        "metadata",
        "output_config",
        "output_format",
        "service_tier",
        "stop_sequences",
        "system",
        "tool_choice",
        "tools",
        *_ANTHROPICS_OWN,
        *_HARMLESS,
    }
)
_LEFT_OUT: Final = frozenset(
    {
        "anthropic_beta",
        "anthropic_version",
        "betas",
        "cache_control",
        "context_management",
        "diagnostics",
        "fallback_credit_token",
        "thinking",
    }
)
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS: Final = {"max": "xhigh"}
_TIERS: Final = {"standard_only": "default"}
_THOUGHTS: Final = frozenset({"thinking", "redacted_thinking"})
_REMEDY: Final = "or ask for a model whose provider speaks the Messages API"


class _MessagesAsChat:
    """See `Translation`."""

    def request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        _check_translatable(body)
        chat = {name: value for name, value in body.items() if name not in _TOLD and name not in _LEFT_OUT}
        chat["messages"] = [*_system(body.get("system")), *_conversation(body["messages"])]
        if body.get("tools"):
            chat["tools"] = [_tool(tool, f"tools[{n}]") for n, tool in enumerate(body["tools"])]
        if body.get("tool_choice") is not None:
            chat |= _tool_choice(body["tool_choice"])
        if body.get("stop_sequences"):
            chat["stop"] = body["stop_sequences"]
        metadata = body.get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get("user_id"), str):
            chat["user"] = metadata["user_id"]
        tier = body.get("service_tier")
        if tier is not None:
            chat["service_tier"] = _TIERS.get(tier, tier) if isinstance(tier, str) else tier
        return chat | _output(body)

    def answer(self, chat: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
        return message_of(chat, body)

    def stream(self, body: Mapping[str, Any]) -> StreamTranslation:
        return MessageStream(body)


def _check_translatable(body: Mapping[str, Any]) -> None:
    for name in _ANTHROPICS_OWN:
        if body.get(name):
            raise UntranslatableError(
                f"`{name}` is a part of Anthropic's own API, and this model is not reached by that. Leave it out, "
                f"{_REMEDY}.",
                param=name,
            )
    for name, harmless in _HARMLESS.items():
        if body.get(name) not in (None, harmless):
            raise UntranslatableError(
                f"`{name}` can only be {harmless!r} here: this model is not reached by Anthropic's own API. Leave it "
                f"out, {_REMEDY}.",
                param=name,
            )
    if body.get("n") not in (None, 1):
        raise UntranslatableError("The Messages API has one answer: leave `n` out.", param="n")


# --- messages -------------------------------------------------------------------------------------------------------
def _system(system: Any) -> Iterator[dict[str, Any]]:
    if isinstance(system, list):
        system = "\n\n".join([_text(block, f"system[{n}]") for n, block in enumerate(system)])
    if system:
        yield {"role": "system", "content": system}


def _conversation(messages: list[Any]) -> Iterator[dict[str, Any]]:
    for n, message in enumerate(messages):
        where, role, content = f"messages[{n}]", message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise UntranslatableError(f"`{where}.role` must be user, assistant or system.", param=f"{where}.role")
        if isinstance(content, str):
            yield {"role": role, "content": content}
            continue
        if not isinstance(content, list):
            raise UntranslatableError(
                f"`{where}.content` must be a text or a list of content blocks.", param=f"{where}.content"
            )
        blocks = [(f"{where}.content[{k}]", _block(block, f"{where}.content[{k}]")) for k, block in enumerate(content)]
        if role == "assistant":
            yield from _spoken(blocks)
        elif role == "system":
            yield from _system(content)
        else:
            yield from _heard(blocks)


_Blocks = list[tuple[str, dict[str, Any]]]


def _heard(blocks: _Blocks) -> Iterator[dict[str, Any]]:
    """Tell a user's message: results of tools first, since nothing may come between them and their calls.

    A tool's message holds text alone, so that the images of results follow in the message behind.
    """
    parts: list[dict[str, Any]] = []
    for where, block in blocks:
        if block["type"] != "tool_result":
            parts.append(_part(block, where))
            continue
        texts, images = _result(block, where)
        yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": "\n".join(texts)}
        parts += images
    if len(parts) == 1 and parts[0]["type"] == "text":
        yield {"role": "user", "content": parts[0]["text"]}
    elif parts:
        yield {"role": "user", "content": parts}


def _result(block: Mapping[str, Any], where: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the texts and the images of a tool's result; a failure has no field of its own in a chat."""
    content = block.get("content")
    listed = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    if not isinstance(listed, list):
        raise UntranslatableError(
            f"`{where}.content` must be a text or a list of content blocks.", param=f"{where}.content"
        )
    parts = [_part(_block(inner, f"{where}.content[{n}]"), f"{where}.content[{n}]") for n, inner in enumerate(listed)]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    images = [part for part in parts if part["type"] != "text"]
    if images:
        texts.append("[image: see below]" if len(images) == 1 else f"[{len(images)} images: see below]")
    if block.get("is_error") is True and not "\n".join(texts).casefold().startswith("error"):
        texts = ["Error: " + (texts[0] if texts else "the tool failed."), *texts[1:]]
    return texts, images


def _spoken(blocks: _Blocks) -> Iterator[dict[str, Any]]:
    """Tell an assistant's message; one of thoughts alone says nothing."""
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for where, block in blocks:
        kind = block["type"]
        if kind == "tool_use":
            calls.append(_call(block, where))
        elif kind not in _THOUGHTS:
            texts.append(_text(block, where))
    if calls:
        yield {"role": "assistant", "content": "".join(texts) or None, "tool_calls": calls}
    elif texts:
        yield {"role": "assistant", "content": "".join(texts)}


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = block.get("input")
    if not isinstance(given, dict):
        raise UntranslatableError(f"`{where}.input` must be an object.", param=f"{where}.input")
    function = {"name": block.get("name"), "arguments": msgspec.json.encode(given).decode()}
    return {"id": block.get("id"), "type": "function", "function": function}


# --- blocks ---------------------------------------------------------------------------------------------------------
def _block(block: Any, where: str) -> dict[str, Any]:
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        raise UntranslatableError(f"`{where}` must be a content block with a `type`.", param=where)
    return block


def _text(block: Any, where: str) -> str:
    block = _block(block, where)
    if block["type"] != "text" or not isinstance(block.get("text"), str):
        raise _foreign(block["type"], where)
    text: str = block["text"]
    return text


def _part(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Tell a block of text, or an image."""
    if block["type"] != "image":
        return {"type": "text", "text": _text(block, where)}
    source = block.get("source")
    match source:
        case {"type": "base64", "media_type": str(media_type), "data": str(data)}:
            return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}
        case {"type": "url", "url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url}}
    raise UntranslatableError(
        f"`{where}.source` must be base64 with its media_type, or a url: files stay at the provider that has them.",
        param=f"{where}.source",
    )


def _foreign(kind: str, where: str) -> UntranslatableError:
    return UntranslatableError(
        f"A block of type {kind!r} has no counterpart in Chat Completions (`{where}`). Send what it holds as text, "
        f"{_REMEDY}.",
        param=where,
    )


# --- the rest -------------------------------------------------------------------------------------------------------
def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise UntranslatableError(f"`{where}` must be an object.", param=where)
    if tool.get("type") not in (None, "custom"):
        raise UntranslatableError(
            f"The tool {tool.get('type')!r} (`{where}`) is Anthropic's own. Leave it out, declare one of your own with "
            f"an input_schema, {_REMEDY}.",
            param=where,
        )
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> dict[str, Any]:
    told: dict[str, Any] = {}
    match choice:
        case {"type": "tool", "name": str(name)}:
            told["tool_choice"] = {"type": "function", "function": {"name": name}}
        case {"type": "auto" | "any" | "none" as kind}:
            told["tool_choice"] = _CHOICES[kind]
        case _:
            raise UntranslatableError(
                "`tool_choice` must be of type auto, any, none, or tool with a name.", param="tool_choice"
            )
    if choice.get("disable_parallel_tool_use") is True:
        told["parallel_tool_calls"] = False
    return told


def _output(body: Mapping[str, Any]) -> dict[str, Any]:
    """Tell how the answer shall look, and how hard the model shall try."""
    config = body.get("output_config") or {}
    if not isinstance(config, dict):
        raise UntranslatableError("`output_config` must be an object.", param="output_config")
    told: dict[str, Any] = {}
    where, wanted = "output_config.format", config.get("format")
    if wanted is None:
        where, wanted = "output_format", body.get("output_format")
    if wanted is not None:
        if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
            raise UntranslatableError(f"`{where}` must be of type json_schema.", param=where)
        schema = {"name": "answer", "schema": wanted.get("schema"), "strict": True}
        told["response_format"] = {"type": "json_schema", "json_schema": schema}
    effort = config.get("effort")
    if isinstance(effort, str):
        told["reasoning_effort"] = _EFFORTS.get(effort, effort)
    return told


MESSAGES_AS_CHAT: Final[Translation] = _MessagesAsChat()
"""How a provider that speaks only Chat Completions answers clients of the Messages API."""
