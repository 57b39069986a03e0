"""The gateway's own log, which may fail, as on a full disk, without failing what is logged."""

from __future__ import annotations

import contextlib

import structlog

__all__ = ["LossyLogger"]


class LossyLogger(structlog.WriteLogger):
    """Writes lines to a file, and loses those that cannot be written: none is worth a request's answer."""

    def msg(self, message: str) -> None:
        """Write a line, or lose it."""
        with contextlib.suppress(OSError):  # a full disk, or nobody reads the pipe any more
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg
