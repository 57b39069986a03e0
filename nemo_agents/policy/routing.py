"""Which deployments can serve a model name, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Deployment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One deployment of a model group. `fleet` is None for a group of every fleet; lower `order` is tried first."""

    deployment_id: str
    fleet: str | None
    group: str
    model: str  # provider/model
    order: int = 0
    weight: int = 1
