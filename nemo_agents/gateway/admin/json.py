"""JSON in and out of the admin API."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.responses import Response

__all__ = ["decode", "json_response"]

T = TypeVar("T")


def decode(raw: bytes, shape: type[T]) -> T:
    """Read a body into a shape, ignoring unknown fields as LiteLLM does. Raises ValueError with the field's path."""
    try:
        return msgspec.json.decode(raw or b"{}", type=shape)
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None


def json_response(content: object, status: int = 200) -> Response:
    """Answer with JSON that no cache keeps."""
    return Response(
        msgspec.json.encode(content),
        status_code=status,
        media_type="application/json",
        headers={"cache-control": "no-store", "x-content-type-options": "nosniff"},
    )
