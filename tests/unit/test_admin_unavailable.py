"""What the admin API says when it cannot read: which of store and limiter it is."""

from __future__ import annotations

import json

import pytest
from starlette.requests import Request

from nemo_agents.gateway.admin import _unavailable
from nemo_agents.gateway.limiter.base import LimiterUnavailable
from nemo_agents.gateway.stores.base import StoreUnavailable


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (None, "The gateway's store cannot be used now."),
        (LimiterUnavailable("redis://10.0.0.7 is away"), "The gateway's rates cannot be read now."),
    ],
)
async def test_what_cannot_be_read_is_named_without_its_address(cause, said):
    error = StoreUnavailable("10.0.0.7 is away")
    error.__cause__ = cause
    scope = {"type": "http", "method": "GET", "path": "/nemo/status", "headers": [], "query_string": b""}
    answer = await _unavailable(Request(scope), error)
    message = json.loads(answer.body)["error"]["message"]
    assert answer.status_code == 503
    assert message.startswith(said)
    assert "10.0.0.7" not in message
