"""Checks that declared values share: names, and lists of them. What cannot be meant raises DeclarationError."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_agents.errors import DeclarationError

__all__ = ["items", "names_of", "put", "refuse_twice", "slug"]

_SLUG = re.compile(r"[a-z][a-z0-9-]{0,62}")


def put(owner: object, field: str, value: object) -> None:
    """Set a field of a frozen value that its own constructor builds."""
    object.__setattr__(owner, field, value)


def slug(value: object, field: str) -> str:
    """Return a name that can stand in an id, an alias and a variable."""
    if isinstance(value, str) and _SLUG.fullmatch(value):
        return value
    raise DeclarationError(
        "is not a name",
        field=field,
        value=value,
        remedy="A name is small letters, digits and hyphens, starts with a letter, and has 63 at most.",
    )


def items(value: object, field: str) -> Sequence[Any]:
    """Return a list as it is."""
    # A text is a sequence of letters; nobody means that.
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise DeclarationError("is not a list", field=field, value=value, remedy="Write a list: [...].")
    return value


def names_of(value: object, field: str, *, what: str, may_be_empty: bool) -> tuple[str, ...]:
    """Return a list of names, each once and without space around it."""
    names = items(value, field)
    if not names and not may_be_empty:
        raise DeclarationError("is empty", field=field, value=value, remedy=f"Name at least one {what}.")
    for name in names:
        if not isinstance(name, str) or not name.strip() or name != name.strip():
            raise DeclarationError(
                f"is not the name of a {what}",
                field=field,
                value=name,
                remedy=f"Write the {what}'s name as a text.",
            )
    refuse_twice(names, field, what)
    return tuple(names)


def refuse_twice(names: Sequence[str], field: str, what: str) -> None:
    """Refuse a name that is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DeclarationError(
                f"names the same {what} twice",
                field=field,
                value=name,
                remedy="Remove or rename one of the two.",
            )
        seen.add(name)
