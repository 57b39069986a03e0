"""A value that fits a JSON schema, the plainest there is."""

from __future__ import annotations

import re
from typing import Any, Final

__all__ = ["example"]

_DEPTH_MAX: Final = 12
_URL: Final = re.compile(r"https?://[^\s<>\"')\]]{1,300}")
_FORMATS: Final = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "email": "someone@example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "hostname": "example.com",
    "duration": "PT1S",
}
_STRING_MAX: Final = 200


def example(schema: dict[str, Any], text: str) -> Any:
    """Return a value for the schema: strings echo `text`, numbers are 1, enums their first, arrays hold one item.

    Required properties are filled, and all of them where none is required. References are followed inside the schema.
    Patterns and exotic keywords are not solved.
    """
    return _Filler(schema, text).value(schema, "", 0)


class _Filler:
    __slots__ = ("_root", "_text")

    def __init__(self, root: dict[str, Any], text: str) -> None:
        self._root = root
        self._text = " ".join(text.split())[:_STRING_MAX] or "sandbox"

    def value(self, schema: Any, name: str, depth: int) -> Any:
        if not isinstance(schema, dict) or depth > _DEPTH_MAX:
            return None if isinstance(schema, dict) else self._text
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][0]
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                return self.value(self._branch(schema[key]), name, depth + 1)
        match _kind(schema):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, name, depth)
            case "integer":
                return int(_number(schema))
            case "number":
                return _number(schema)
            case "boolean":
                return True
            case "null":
                return None
            case _:
                return self._string(schema, name)

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Follow `$ref` and merge `allOf`; a reference to nowhere is any string."""
        for _ in range(_DEPTH_MAX):
            target = schema.get("$ref")
            if not isinstance(target, str):
                break
            rest = {key: item for key, item in schema.items() if key != "$ref"}
            schema = {**self._lookup(target), **rest}
        if not isinstance(schema.get("allOf"), list):
            return schema
        merged = {key: item for key, item in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            part_schema = self._follow(part)
            for key, item in part_schema.items():
                if key == "properties" and isinstance(merged.get(key), dict) and isinstance(item, dict):
                    merged[key] = {**merged[key], **item}
                elif key == "required" and isinstance(merged.get(key), list) and isinstance(item, list):
                    merged[key] = [*merged[key], *item]
                else:
                    merged.setdefault(key, item)
        return merged

    def _follow(self, part: Any) -> dict[str, Any]:
        if not isinstance(part, dict):
            return {}
        return self._lookup(part["$ref"]) if isinstance(part.get("$ref"), str) else part

    def _lookup(self, reference: str) -> dict[str, Any]:
        node: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            node = node.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
        return node if isinstance(node, dict) else {"type": "string"}

    def _branch(self, options: list[Any]) -> Any:
        return next((o for o in options if not (isinstance(o, dict) and o.get("type") == "null")), options[0])

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return {}
        required = schema.get("required")
        wanted = required if isinstance(required, list) else []
        names = [n for n in wanted if isinstance(n, str) and n in properties] or list(properties)
        return {name: self.value(properties[name], name, depth + 1) for name in names}

    def _array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        if isinstance(schema.get("prefixItems"), list):
            return [self.value(item, name, depth + 1) for item in schema["prefixItems"]]
        least, most = schema.get("minItems", 1), schema.get("maxItems", 1)
        size = max(least if isinstance(least, int) else 1, 1)
        size = min(size, 50, most if isinstance(most, int) and most >= size else size)
        if most == 0:
            return []
        return [self.value(schema.get("items", {"type": "string"}), name, depth + 1) for _ in range(size)]

    def _string(self, schema: dict[str, Any], name: str) -> str:
        kind = schema.get("format")
        if kind in {"uri", "url"} or name.lower() in {"url", "uri", "link"}:
            found = _URL.search(self._text)
            return found[0] if found else "https://example.com/"
        if isinstance(kind, str) and kind in _FORMATS:
            return _FORMATS[kind]
        text = self._text
        least, most = schema.get("minLength"), schema.get("maxLength")
        if isinstance(least, int) and len(text) < least <= 10_000:
            text = (text + " ") * (least // (len(text) + 1) + 1)
            text = text[:least]
        return text[:most] if isinstance(most, int) and most >= 0 else text


def _kind(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((item for item in kind if item != "null"), "null")
    if isinstance(kind, str):
        return kind
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _number(schema: dict[str, Any]) -> float:
    def bound(key: str) -> float | None:
        value = schema.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    low, above = bound("minimum"), bound("exclusiveMinimum")
    high, below = bound("maximum"), bound("exclusiveMaximum")
    value: float = 1
    if low is not None and value < low:
        value = low
    if above is not None and value <= above:
        value = above + 1
    if high is not None and value > high:
        value = high
    if below is not None and value >= below:
        value = below - 1 if low is None or below - 1 >= low else (low + below) / 2
    step = bound("multipleOf")
    return step if step is not None and step > 0 and value % step else value
