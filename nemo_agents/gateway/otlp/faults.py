"""What a request for traces is turned away with as a whole."""

from __future__ import annotations

__all__ = ["BadTraces"]


class BadTraces(Exception):  # noqa: N818 - an answer, and never leaves this package
    """The request cannot be read (400), or has more in it than is taken (413)."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        self.status = status
        super().__init__(message)
