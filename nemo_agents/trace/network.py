"""What connections to a gateway need of TLS."""

from __future__ import annotations

import functools
import ssl
from urllib.parse import urlsplit

__all__ = ["bare_tls", "is_plain"]


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
