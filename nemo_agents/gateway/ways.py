"""In which wire a request goes to a provider: its own where the provider speaks it, else retold as Chat Completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from nemo_agents.errors import Code
from nemo_agents.gateway.exchange import Denied, Exchange
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.routing import SANDBOX, Target
from nemo_agents.policy.wires.base import Translation, UntranslatableError, Wire, WireName
from nemo_agents.policy.wires.chat import CHAT
from nemo_agents.policy.wires.table import TRANSLATIONS

__all__ = ["Way", "Ways"]

_SANDBOX_WIRES: Final[frozenset[WireName]] = frozenset({"chat", "embeddings"})
_OWN_PREFIX: Final = "nemo_"
_OWN_FIELDS: Final = frozenset({"litellm_session_id", "litellm_trace_id", "session_id"})


class Way(Struct, frozen=True, kw_only=True):
    """How a request is told to a provider. `body` is what the provider reads, but for its own name of the model.

    `translation` is None where the provider speaks the client's wire.
    """

    wire: Wire
    body: dict[str, Any]
    translation: Translation | None = None


class Ways:
    """The ways of one request; each is worked out once, however many attempts go it.

    A body that goes out is written anew from what was checked: never the gateway's own fields.
    """

    def __init__(self, x: Exchange) -> None:
        self._x = x
        self._native: Way | None = None
        self._as_chat: Way | Refusal | None = None

    def to(self, target: Target) -> Way | Refusal:
        """Return the way to a target; a refusal when it has no words for this request."""
        config = self._x.gateway.provider_configs.get(target.provider)
        spoken = config.wires if config is not None else _SANDBOX_WIRES
        wire = self._x.wire
        if wire.name in spoken:
            if self._native is None:
                self._native = Way(wire=wire, body=_without_own_fields(self._x.body))
            return self._native
        if wire.name not in TRANSLATIONS or "chat" not in spoken:
            return Refusal(
                status=400,
                code=Code.INVALID_REQUEST,
                message=f"{target.provider} does not serve {wire.path}, and it cannot be translated for it. "
                "Ask for a model of a provider that does.",
                param="model",
            )
        if self._as_chat is None:
            self._as_chat = self._translated(TRANSLATIONS[wire.name], target)
        return self._as_chat

    def known(self, target: Target) -> Way:
        """Return the way to a target that has passed `passable`."""
        way = self.to(target)
        assert isinstance(way, Way)
        return way

    def passable(self, targets: Sequence[Target]) -> Sequence[Target]:
        """Return the targets that have words for the request. Raises Denied when none has."""
        if len(targets) == 1:
            way = self.to(targets[0])
            if isinstance(way, Refusal):
                raise Denied(way)
            return targets
        ways = [(target, self.to(target)) for target in targets]
        passing = [target for target, way in ways if isinstance(way, Way)]
        if not passing:
            raise Denied(next(way for _, way in ways if isinstance(way, Refusal)))
        return passing

    def _translated(self, translation: Translation, target: Target) -> Way | Refusal:
        body = _without_own_fields(self._x.body)
        try:
            return Way(wire=CHAT, body=translation.request(body), translation=translation)
        except UntranslatableError as error:
            return Refusal(
                status=400,
                code=Code.INVALID_REQUEST,
                message=f"{error} (It would have to be translated for {target.provider}, which does not serve "
                f"{self._x.wire.path} itself.)",
                param=error.param,
            )


def sandbox_fields(target: Target, body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the client's body that are meant for the sandbox, if that is where it goes."""
    if target.provider == SANDBOX and "nemo_sandbox" in body:
        return {"nemo_sandbox": body["nemo_sandbox"]}
    return {}


def _without_own_fields(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in _OWN_FIELDS and not name.startswith(_OWN_PREFIX)}
