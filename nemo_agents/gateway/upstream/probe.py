"""Whether a server for models runs on this machine; asked once, at the start, of loopback addresses."""

from __future__ import annotations

import http.client
import json
from typing import Final
from urllib.parse import urlsplit

from nemo_agents.policy.hosts import is_loopback

__all__ = ["lists_models"]

_TIMEOUT_S: Final = 0.3
_ANSWER_BYTES_MAX: Final = 1 << 20


def lists_models(base_url: str, owner: str | None = None) -> bool:
    """Say whether a list of models is at `{base_url}/models`, of which one is owned by `owner` where that is given.

    Other programs like the same ports: what does not answer with such a list at once is none of ours. Only this
    machine is asked.
    """
    url = urlsplit(base_url)
    if not is_loopback(url.hostname or ""):
        return False
    connection = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", f"{url.path}/models", headers={"accept": "application/json"})
        answer = connection.getresponse()
        listed = json.loads(answer.read(_ANSWER_BYTES_MAX)) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return False
    finally:
        connection.close()
    if not isinstance(listed, dict) or "data" not in listed:
        return False
    models = listed["data"] or []  # Ollama without any model says null
    return owner is None or any(isinstance(model, dict) and model.get("owned_by") == owner for model in models)
