"""Under which host names the gateway answers: the guard against DNS rebinding."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["host_allowed"]

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def host_allowed(host: str, allowed: Sequence[str]) -> bool:
    """Say whether a `Host` header names the gateway: loopback with any port, or one of `allowed` (without port)."""
    match = _HOST.fullmatch(host.lower())
    return match is not None and (match[1] in _LOOPBACK or match[1] in {name.lower() for name in allowed})
