"""What the sandbox is told to do instead of its usual answer: per request, or by rules from configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Self

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.sandbox.tokens import dump

__all__ = ["SandboxSettings", "Script", "ScriptError", "ScriptRule", "ScriptedCall"]


class ScriptError(ValueError):
    """A script with an unknown field or an impossible value; the message names both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedCall:
    """A tool call to answer with; `arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Deviations from the usual answer; None means as usual.

    `latency_ms` until the head of the answer, `chunk_delay_ms` before each event of a stream. `status` (400 to 599)
    answers with an error, its text in `error`, and `retry_after_s` in its header. `output_tokens` is the exact size of
    the text, `text` the exact text. `drop_after_chunks` breaks the connection after that many chunks of the body;
    `hang` never answers, or with `drop_after_chunks` falls silent there, until the caller's time-out. `usage` is
    "missing" or replaces fields of the usage; `cached_tokens` says how much of the prompt was cached.
    """

    latency_ms: float | None = None
    chunk_delay_ms: float | None = None
    status: int | None = None
    retry_after_s: float | None = None
    error: str | None = None
    output_tokens: int | None = None
    text: str | None = None
    tool_calls: tuple[ScriptedCall, ...] | None = None
    drop_after_chunks: int | None = None
    hang: bool | None = None
    finish_reason: str | None = None
    usage: str | Mapping[str, Any] | None = None
    cached_tokens: int | None = None

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a script from JSON or TOML. Raises ScriptError."""
        if not isinstance(value, Mapping):
            raise ScriptError("a script is an object")
        read = {}
        for name, item in value.items():
            if name not in _READ:
                raise ScriptError(f"unknown field {str(name)[:60]!r}; there are {', '.join(_READ)}")
            if item is not None:
                read[name] = _READ[name](name, item)
        if "status" not in read and ("error" in read or "retry_after_s" in read):
            raise ScriptError("error and retry_after_s need a status")
        return cls(**read)

    def over(self, other: Script) -> Script:
        """Return `other` with every field of this script that is set."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: value for name, value in mine.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptRule:
    """A script for the requests it matches: a glob over the model's name, a part of the last user message, or both.

    `times` is how many matching requests it serves before the next rule is asked; None is all of them.
    """

    script: Script
    model: str | None = None
    contains: str | None = None
    times: int | None = None

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a rule: `model`, `contains`, `times` beside the fields of a script. Raises ScriptError."""
        if not isinstance(value, Mapping):
            raise ScriptError("a rule is a table")
        rest = {name: item for name, item in value.items() if name not in {"model", "contains", "times"}}
        model, contains, times = value.get("model"), value.get("contains"), value.get("times")
        return cls(
            model=None if model is None else _text("model", model),
            contains=None if contains is None else _text("contains", contains),
            times=None if times is None else _whole(1)("times", times),
            script=Script.parse(rest),
        )

    def matches(self, names: tuple[str, ...], last_user_text: str) -> bool:
        """Say whether the rule is for a model known by any of these names and for this text."""
        if self.model is not None and not any(fnmatchcase(name, self.model) for name in names):
            return False
        return self.contains is None or self.contains in last_user_text


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """How the sandbox behaves when a request does not say otherwise. Raises SettingsError."""

    latency_ms: float = 0.0
    chunk_delay_ms: float = 0.0
    script: tuple[ScriptRule, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("latency_ms", "chunk_delay_ms"):
            try:
                _amount(name, getattr(self, name))
            except ScriptError as error:
                raise SettingsError(f"[sandbox]: {error}") from error
        for rule in self.script:
            if not isinstance(rule, ScriptRule):
                raise SettingsError("[sandbox] script: rules are ScriptRule values; read tables with from_config")

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> Self:
        """Read `[sandbox]` of the configuration. Raises SettingsError naming the rule, the field and the value."""
        if unknown := set(table) - {"latency_ms", "chunk_delay_ms", "script"}:
            raise SettingsError(
                f"[sandbox]: unknown field {min(unknown)}; there are latency_ms, chunk_delay_ms, script"
            )
        entries = table.get("script", ())
        if not isinstance(entries, list | tuple):
            raise SettingsError("[sandbox] script: must be a list of rules, written as [[sandbox.script]]")
        rules = []
        for number, entry in enumerate(entries, 1):
            try:
                rules.append(entry if isinstance(entry, ScriptRule) else ScriptRule.parse(entry))
            except ScriptError as error:
                raise SettingsError(f"[[sandbox.script]] rule {number}: {error}") from error
        return cls(
            latency_ms=table.get("latency_ms", 0.0),
            chunk_delay_ms=table.get("chunk_delay_ms", 0.0),
            script=tuple(rules),
        )


_Read = Callable[[str, Any], Any]
_AMOUNT_MAX: Final = 3_600_000  # an hour in ms; more is a slip of units
_TOKENS_MAX: Final = 1_000_000
_FINISH: Final = re.compile(r"[a-z_]{1,40}")


def _amount(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _AMOUNT_MAX:
        raise ScriptError(f"{name} must be a number from 0 to {_AMOUNT_MAX}, not {_shown(value)}")
    return float(value)


def _whole(least: int, most: int = _TOKENS_MAX) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ScriptError(f"{name} must be a whole number from {least} to {most}, not {_shown(value)}")
        return value

    return read


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ScriptError(f"{name} must be text, not {_shown(value)}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ScriptError(f"{name} must be true or false, not {_shown(value)}")
    return value


def _finish(name: str, value: Any) -> str:
    if _FINISH.fullmatch(_text(name, value)) is None:
        raise ScriptError(f"{name} must be a word such as stop or content_filter, not {_shown(value)}")
    return str(value)


def _calls(name: str, value: Any) -> tuple[ScriptedCall, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ScriptError(f"{name} must be a list of {{name, arguments}}, not {_shown(value)}")
    calls = []
    for item in value:
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str) or set(item) - {"name", "arguments"}:
            raise ScriptError(f"{name} holds objects of name and arguments, not {_shown(item)}")
        arguments = item.get("arguments", {})
        if not isinstance(arguments, str):
            try:
                arguments = dump(arguments)
            except (TypeError, ValueError) as error:
                raise ScriptError(f"{name}: arguments must be JSON or text") from error
        calls.append(ScriptedCall(name=item["name"], arguments=arguments))
    return tuple(calls)


def _usage(name: str, value: Any) -> str | dict[str, Any]:
    if value == "missing" or (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        return value if isinstance(value, str) else dict(value)
    raise ScriptError(f'{name} must be "missing" or an object, not {_shown(value)}')


def _shown(value: Any) -> str:
    return repr(value)[:60]


_READ: Final[Mapping[str, _Read]] = {
    "latency_ms": _amount,
    "chunk_delay_ms": _amount,
    "status": _whole(400, 599),
    "retry_after_s": _amount,
    "error": _text,
    "output_tokens": _whole(0),
    "text": _text,
    "tool_calls": _calls,
    "drop_after_chunks": _whole(0),
    "hang": _flag,
    "finish_reason": _finish,
    "usage": _usage,
    "cached_tokens": _whole(0),
}
