"""A fleet that runs: the declaration, with the keys and the gateway of the machine it is used on."""

from __future__ import annotations

import importlib
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from nemo_agents import environment
from nemo_agents.admin import observe
from nemo_agents.admin.calls import Call
from nemo_agents.admin.wire import RunReport, RunRow, Why
from nemo_agents.errors import AdminError, DeclarationError, ProvisionError
from nemo_agents.money import Money, parse_dollars
from nemo_agents.policy.keys import mask_key
from nemo_agents.provision.keystore import FileKeyStore
from nemo_agents.provision.load import load_fleet
from nemo_agents.roles import FleetDeclaration
from nemo_agents.secret import Secret
from nemo_agents.trace import propagate
from nemo_agents.trace.member import Member
from nemo_agents.trace.otlp import SpanRecord, encode_spans
from nemo_agents.trace.rim import REPORT_TIMEOUT_S, Rim
from nemo_agents.trace.run import OnStop, Run

__all__ = ["Fleet", "Member"]

_KEYS_FILE: Final = "keys.json"
_MAX_CALLS_MAX: Final = 999_999_999
_WHY_TIMEOUT_S: Final = 30.0  # the texts of a long run are read for it
_KEY_REFUSED: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """Where a fleet is used. What is None comes from the environment, read at each use."""

    gateway_url: str | None = None
    home: Path | None = None
    environ: Mapping[str, str] | None = field(default=None, repr=False)

    def env(self) -> Mapping[str, str]:
        return os.environ if self.environ is None else self.environ

    def url(self) -> str:
        return self.gateway_url or environment.gateway_url(self.env())

    def key_of(self, gateway_url: str, fleet: str, role: str) -> Secret | None:
        variable = environment.role_key_variable(role)
        if text := self.env().get(variable, "").strip():
            return Secret(text, mask=mask_key(text))
        home = self.home or environment.home(self.env())
        return FileKeyStore(home / _KEYS_FILE).secret(gateway_url, fleet, role)


_F = TypeVar("_F", bound="Fleet")
_T = TypeVar("_T")


class Fleet(FleetDeclaration):
    """A named set of roles that are provisioned together, and what agents use to run as them.

    `fleet["researcher"]` is a role with its key, `fleet.run(...)` starts a run. Keys come from `NEMO_KEY_<ROLE>`,
    then from the key store that provisioning fills; the gateway's address from `NEMO_GATEWAY_URL`. `connect` says
    otherwise. Where a fleet is connected is no part of what it declares: it does not count in comparisons.
    """

    __slots__ = ("_site",)

    _site: _Site

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Return the fleet that a `.py` or `.toml` file declares. Raises DeclarationError."""
        declared = load_fleet(Path(path))
        return declared if isinstance(declared, cls) else cls.of(declared)

    @classmethod
    def of(cls, declared: FleetDeclaration) -> Self:
        """Return a declaration as a fleet that can run."""
        return cls(**_declared(declared))

    def connect(
        self,
        gateway_url: str | None = None,
        *,
        home: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Return the same fleet, used with this gateway, key store folder and environment."""
        site = _Site(
            gateway_url=gateway_url.rstrip("/") if gateway_url else None,
            home=Path(home) if home is not None else None,
            environ=dict(environ) if environ is not None else None,
        )
        return _restored(type(self), _declared(self), site)

    def __getitem__(self, role: str) -> Member:
        """Return a role with its key. Raises DeclarationError when the fleet has no such role."""
        return self._member(role, self.gateway_url)

    def __reduce__(self) -> tuple[object, ...]:
        # An environment given to `connect` may hold keys, and stays behind: the copy reads that of its process.
        site = _Site(gateway_url=self._where().gateway_url, home=self._where().home)
        return (_restored, (type(self), _declared(self), site))

    @property
    def gateway_url(self) -> str:
        """The address of the gateway that this fleet is used with."""
        return self._where().url()

    def run(
        self,
        name: str,
        *,
        budget: str | Decimal | int | Money | None = None,
        max_calls: int | None = None,
        run_id: str | None = None,
        on_stop: OnStop = "return",
    ) -> Run:
        """Return a new run, to be entered with `with` or `async with`.

        `budget` (dollars, such as `"$0.50"`) and `max_calls` are caps of this run alone, held by the gateway.
        `run_id` joins a run that was begun elsewhere, or names this one. `on_stop="raise"` lets the refusal that
        stops the run leave the block. Raises DeclarationError for what cannot be meant.
        """
        if on_stop not in ("return", "raise"):
            raise DeclarationError(
                "is not a way to stop", field="on_stop", value=on_stop, remedy='Use "return" or "raise".'
            )
        ref = propagate.RunRef(
            run_id=uuid.uuid4().hex if run_id is None else propagate.check_run_id(run_id),
            name=propagate.run_name(name),
            span_id=_new_span_id(),
            budget_nanos=_budget_nanos(budget),
            max_calls=_call_cap(max_calls),
        )
        # Here and not in the thread that reports: openai 3 looks at whatever httpx has been imported, half of it too.
        importlib.import_module("nemo_agents.client")
        url = self.gateway_url
        rim = Rim(
            gateway_url=url,
            member=partial(self._member, gateway_url=url),
            report=partial(self._report, url),
            areport=partial(self._areport, url),
            why=partial(self._why, url),
            awhy=partial(self._awhy, url),
            send_spans=partial(self._send_spans, url),
            clock_us=_now_us,
            new_span_id=_new_span_id,
        )
        return Run(ref, rim, on_stop=on_stop)

    def _where(self) -> _Site:
        return getattr(self, "_site", _ANYWHERE)

    def _member(self, role: str, gateway_url: str) -> Member:
        declared = self.role(role)
        return Member(role=declared, gateway_url=gateway_url, find_key=partial(self._key, declared.name, gateway_url))

    def _key(self, role: str, gateway_url: str) -> Secret:
        key = self._where().key_of(gateway_url, self.name, role)
        if key is not None:
            return key
        raise ProvisionError(
            f"no key for role {role} of fleet {self.name} at {gateway_url}: "
            f"run `nemo-agents provision fleet.py` or set {environment.role_key_variable(role)}"
        )

    def _keys(self, gateway_url: str) -> list[Secret]:
        """Return the known keys of this fleet's roles; each may tell about its runs, unless it was revoked since."""
        site = self._where()
        found = (site.key_of(gateway_url, self.name, role.name) for role in self.roles)
        if keys := [key for key in found if key is not None]:
            return keys
        raise ProvisionError(
            f"no key for any role of fleet {self.name} at {gateway_url}: run `nemo-agents provision fleet.py`"
        )

    def _report(self, gateway_url: str, run_id: str, told: RunReport) -> RunRow:
        return self._ask(gateway_url, observe.report(run_id, told))

    async def _areport(self, gateway_url: str, run_id: str, told: RunReport) -> RunRow:
        return await self._aask(gateway_url, observe.report(run_id, told))

    def _why(self, gateway_url: str, run_id: str) -> Why:
        return self._ask(gateway_url, observe.why(run_id), timeout_s=_WHY_TIMEOUT_S)

    async def _awhy(self, gateway_url: str, run_id: str) -> Why:
        return await self._aask(gateway_url, observe.why(run_id), timeout_s=_WHY_TIMEOUT_S)

    def _send_spans(self, gateway_url: str, run_id: str, spans: Sequence[SpanRecord]) -> None:
        self._ask(gateway_url, observe.traces(encode_spans(run_id, spans)))

    def _ask(self, gateway_url: str, call: Call[_T], *, timeout_s: float = REPORT_TIMEOUT_S) -> _T:
        """Ask with the first key that the gateway still takes: one of them may have been revoked in mid-run."""
        from nemo_agents.client import Client  # noqa: PLC0415 - slow to import, and needed only once a run reports

        keys = self._keys(gateway_url)
        for key in keys[:-1]:
            try:
                with Client(gateway_url, key, timeout_s=timeout_s) as client:
                    return client.run(call)
            except AdminError as exc:
                if exc.status not in _KEY_REFUSED:
                    raise
        with Client(gateway_url, keys[-1], timeout_s=timeout_s) as client:
            return client.run(call)

    async def _aask(self, gateway_url: str, call: Call[_T], *, timeout_s: float = REPORT_TIMEOUT_S) -> _T:
        from nemo_agents.client import AsyncClient  # noqa: PLC0415 - likewise

        keys = self._keys(gateway_url)
        for key in keys[:-1]:
            try:
                async with AsyncClient(gateway_url, key, timeout_s=timeout_s) as client:
                    return await client.run(call)
            except AdminError as exc:
                if exc.status not in _KEY_REFUSED:
                    raise
        async with AsyncClient(gateway_url, keys[-1], timeout_s=timeout_s) as client:
            return await client.run(call)


_ANYWHERE = _Site()
_DECLARED: Final = ("name", "roles", "models", "rpm", "tpm", "max_parallel", "shadow", "guardrails")


def _declared(fleet: FleetDeclaration) -> dict[str, Any]:
    """Return what to construct an equal fleet with."""
    return {**{name: getattr(fleet, name) for name in _DECLARED}, "budget": fleet.budgets}


def _restored(kind: type[_F], declared: Mapping[str, Any], site: _Site) -> _F:
    fleet = kind(**declared)
    object.__setattr__(fleet, "_site", site)  # the declaration around it is frozen
    return fleet


def _now_us() -> int:
    return time.time_ns() // 1_000


def _new_span_id() -> str:
    return uuid.uuid4().hex[:16]


def _budget_nanos(budget: object) -> int | None:
    if budget is None:
        return None
    try:
        nanos = budget.nanos if isinstance(budget, Money) else parse_dollars(budget)  # type: ignore[arg-type]
    except ValueError as exc:
        problem = str(exc)
    else:
        if nanos > 0:
            return nanos
        problem = "a run's budget is above 0"
    raise DeclarationError(
        problem, field="budget", value=budget, remedy='For example budget="$0.50"; a run has no period.'
    )


def _call_cap(max_calls: object) -> int | None:
    if max_calls is None:
        return None
    if isinstance(max_calls, int) and not isinstance(max_calls, bool) and 0 < max_calls <= _MAX_CALLS_MAX:
        return max_calls
    raise DeclarationError(
        f"is not a number of calls from 1 to {_MAX_CALLS_MAX}",
        field="max_calls",
        value=max_calls,
        remedy="For example max_calls=200.",
    )
