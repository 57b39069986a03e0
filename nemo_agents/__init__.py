"""Declare your agents' roles; a gateway holds each to its models, limits, budget and guardrails.

Names load when they are first used, so that `import nemo_agents` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nemo_agents.errors import (
        AccessDenied,
        AdapterError,
        AdminError,
        BudgetExceeded,
        Code,
        DeclarationError,
        GatewayError,
        GatewayUnavailable,
        GatewayUnreachable,
        GuardrailBlocked,
        KeyRejected,
        KeyStoreError,
        NemoError,
        ProvisionError,
        RateLimited,
        Refused,
        RequestRejected,
        RunEnded,
        RunStopped,
        SettingsError,
        StalePlan,
        UpstreamFailed,
    )
    from nemo_agents.fleet import Fleet
    from nemo_agents.groups import Deployment, ModelGroup
    from nemo_agents.money import Money
    from nemo_agents.roles import AgentRole, Guardrail
    from nemo_agents.rules import Budget, Loop, RateLimit
    from nemo_agents.trace.member import Member
    from nemo_agents.trace.run import Run, current_run, current_step
    from nemo_agents.trace.spans import Span
    from nemo_agents.trace.step import Step

__all__ = [
    "AccessDenied",
    "AdapterError",
    "AdminError",
    "AgentRole",
    "Budget",
    "BudgetExceeded",
    "Code",
    "DeclarationError",
    "Deployment",
    "Fleet",
    "GatewayError",
    "GatewayUnavailable",
    "GatewayUnreachable",
    "Guardrail",
    "GuardrailBlocked",
    "KeyRejected",
    "KeyStoreError",
    "Loop",
    "Member",
    "ModelGroup",
    "Money",
    "NemoError",
    "ProvisionError",
    "RateLimit",
    "RateLimited",
    "Refused",
    "RequestRejected",
    "Run",
    "RunEnded",
    "RunStopped",
    "SettingsError",
    "Span",
    "StalePlan",
    "Step",
    "UpstreamFailed",
    "__version__",
    "current_run",
    "current_step",
]

__version__: Final = "0.1.0"

_HOME_OF: Final = {
    "AgentRole": "roles",
    "Budget": "rules",
    "Deployment": "groups",
    "Fleet": "fleet",
    "Guardrail": "roles",
    "Loop": "rules",
    "Member": "trace.member",
    "ModelGroup": "groups",
    "Money": "money",
    "RateLimit": "rules",
    "Run": "trace.run",
    "Span": "trace.spans",
    "Step": "trace.step",
    "current_run": "trace.run",
    "current_step": "trace.run",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it (PEP 562); what is not listed above is an error."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
