"""Deployments of model groups on LiteLLM's wire: `/model/*`."""

from __future__ import annotations

import msgspec

from nemo_agents.admin.calls import Call, ignored
from nemo_agents.admin.wire import DeploymentRow

__all__ = ["delete", "every", "new"]


class _Deployments(msgspec.Struct):
    data: list[DeploymentRow]


def new(deployment: DeploymentRow) -> Call[None]:
    """Add one deployment; its id is the caller's choice (`model_info.id`)."""
    return Call(method="POST", path="/model/new", body=msgspec.to_builtins(deployment), decode=ignored)


def every() -> Call[list[DeploymentRow]]:
    """Read all deployments."""
    return Call(method="GET", path="/model/info", decode=_deployments)


def delete(deployment_id: str) -> Call[None]:
    """Remove one deployment."""
    return Call(method="POST", path="/model/delete", body={"id": deployment_id}, decode=ignored)


def _deployments(answer: bytes) -> list[DeploymentRow]:
    return msgspec.json.decode(answer, type=_Deployments).data
