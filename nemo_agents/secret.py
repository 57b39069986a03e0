"""A text that must not be seen: every way of showing it gives a mask."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["Secret"]


class Secret:
    """A secret text. `str`, `repr`, `format` and JSON encoders see only the mask; `reveal()` gives the text."""

    __slots__ = ("_mask", "_text")

    def __init__(self, text: str, *, mask: str = "…") -> None:
        self._text = text
        self._mask = mask

    def reveal(self) -> str:
        """Return the text itself; call it only where it goes to the wire or into a 0600 file."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({self._mask})"

    def __str__(self) -> str:
        return self._mask

    def __format__(self, spec: str) -> str:
        return format(self._mask, spec)

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")
