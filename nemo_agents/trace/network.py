"""What connections to a gateway on this machine need, and what they must not have."""

from __future__ import annotations

import functools
import ipaddress
import ssl
from urllib.parse import urlsplit

__all__ = ["bare_tls", "is_loopback", "is_plain"]


def is_loopback(url: str) -> bool:
    """Say whether an address is this machine's own; a proxy from the environment must not come between."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_plain(url: str) -> bool:
    """Say whether an address is spoken to without TLS."""
    return urlsplit(url).scheme == "http"


@functools.cache
def bare_tls() -> ssl.SSLContext:
    """Return TLS settings that trust nobody, for clients that speak plain HTTP.

    HTTP libraries read the machine's certificates, some 50 ms of work, for every client that is not given such
    settings. A redirect to https fails with these; the gateway never redirects.
    """
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
