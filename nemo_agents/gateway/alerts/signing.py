"""Signatures of webhooks, as Standard Webhooks 1.0 has them.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md: a secret is `whsec_` and the
base64 of 24 to 64 random bytes; `webhook-signature` is `v1,` and the base64 of HMAC-SHA256 over
`<webhook-id>.<webhook-timestamp>.<body>`, one per secret, with spaces between.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from nemo_agents.secret import Secret

__all__ = ["SECRET_PREFIX", "read_secrets", "signature_headers"]

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what secrets begin with
_BYTES_MIN, _BYTES_MAX = 24, 64


def read_secrets(text: str) -> tuple[Secret, ...]:
    """Return the secrets in a text, which has several with spaces between while one replaces another.

    Raises ValueError, whose text has nothing of a secret in it.
    """
    secrets = tuple(Secret(part, mask=f"{SECRET_PREFIX}…") for part in text.split())
    if not secrets:
        raise ValueError("is empty")
    for secret in secrets:
        _key_of(secret)
    return secrets


def signature_headers(secrets: Sequence[Secret], *, event_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """Return the three headers of a delivery; `timestamp_s` is when this try is made, in seconds since the epoch."""
    signed = b".".join((event_id.encode(), str(timestamp_s).encode(), body))
    signatures = [
        "v1," + base64.b64encode(hmac.digest(_key_of(secret), signed, hashlib.sha256)).decode() for secret in secrets
    ]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(signatures),
    }


def _key_of(secret: Secret) -> bytes:
    text = secret.reveal()
    if not text.startswith(SECRET_PREFIX):
        raise ValueError(f"does not begin with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"has something else than base64 behind {SECRET_PREFIX}") from None
    if not _BYTES_MIN <= len(key) <= _BYTES_MAX:
        raise ValueError(f"has {len(key)} bytes behind {SECRET_PREFIX}; {_BYTES_MIN} to {_BYTES_MAX} are right")
    return key
