"""Host names: under which the gateway and its viewer answer (against DNS rebinding), and which are this machine."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

__all__ = ["AllowedHosts", "host_allowed", "is_loopback", "is_loopback_url"]

AllowedHosts = Callable[[str], bool] | Sequence[str]
"""Host names without port: a list in any case, or a function that gets a name in lower case."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def host_allowed(host: str, allowed: AllowedHosts) -> bool:
    """Say whether a `Host` header names this machine, or one of `allowed`, on any port."""
    match = _HOST.fullmatch(host.lower())
    if match is None:
        return False
    name = match[1]
    if name in _LOOPBACK:
        return True
    return allowed(name) if callable(allowed) else name in {each.lower() for each in allowed}


def is_loopback(host: str) -> bool:
    """Say whether a host, a name or an address without brackets, is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_loopback_url(url: str) -> bool:
    """Say whether a URL leads to this machine itself. Raises ValueError for what is not a URL."""
    return is_loopback(urlsplit(url).hostname or "")
