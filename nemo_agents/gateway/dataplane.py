"""The data plane: admission of one request, in order, and then the relay.

A bare ASGI callable: no routing table, no request object, no middleware on the path of a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import msgspec
import structlog

from nemo_agents.errors import Code
from nemo_agents.gateway.answers import LINE, Send, send_json
from nemo_agents.gateway.authentication import STALE_KEYS, authenticate, bearer, fleet_refusal
from nemo_agents.gateway.cache.replay import answer_from_cache, cache_key
from nemo_agents.gateway.exchange import Denied, Exchange
from nemo_agents.gateway.limiter.base import LimiterUnavailable, Repeat
from nemo_agents.gateway.modellist import ModelList, models_object
from nemo_agents.gateway.outages import Complaints
from nemo_agents.gateway.relay import relay
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.policy import guardrails as guards
from nemo_agents.policy.admission import NOT_FROM_CLIENTS, check_tools, other_models
from nemo_agents.policy.grouping import own_run, run_of
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.loops import digest
from nemo_agents.policy.rates import WINDOW_US, RateScope, Reading
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.routing import allowed
from nemo_agents.policy.wires.base import Wire
from nemo_agents.policy.wires.chat import CHAT
from nemo_agents.policy.wires.checks import nested_too_deep
from nemo_agents.policy.wires.messages import MESSAGES
from nemo_agents.policy.wires.table import WIRES

__all__ = ["INTERNAL", "DataPlane", "decode_headers"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_LONG_TEXT_BYTES = 64 * 1024
_MODEL_NAME_MAX = 256
_log = structlog.get_logger("nemo_agents.gateway")
_MODELS = "/v1/models"


class DataPlane:
    """Serves `/v1/…` for one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._models = ModelList(gateway)
        self._no_store = Complaints(_log, "store unavailable")
        self._no_limiter = Complaints(_log, "limiter unavailable")

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        gateway, headers = self._gateway, decode_headers(scope)
        x = Exchange(
            gateway=gateway,
            send=send,
            request_id=gateway.ids.request_id(),
            started_us=gateway.clock.now_us(),
            wire=WIRES.get(scope["path"]) or _wire_of_client(headers),
            headers=headers,
            line=(scope.get("extensions") or {}).get(LINE),
        )
        try:
            await self._serve(x, scope, receive)
        except Denied as denied:
            await self._denied(x, denied.refusal)
        except StoreUnavailable as error:
            self._no_store.add(request_id=x.request_id, error=str(error))
            await self._answer_fault(x, _UNAVAILABLE)
        except LimiterUnavailable as error:
            self._no_limiter.add(request_id=x.request_id, error=str(error))
            await self._denied(x, _NO_RATES)
        except Exception:  # noqa: BLE001 - the last line of defence: a 500 with a code, never a dropped connection
            # The traceback goes to the log without the request: prompts and keys are in its locals, never in it.
            _log.exception("internal error", request_id=x.request_id)
            if not x.opened and x.grant is not None:
                await self._log_refusal(x, INTERNAL)
            await self._answer_fault(x, INTERNAL)

    async def _serve(self, x: Exchange, scope: MutableMapping[str, Any], receive: Receive) -> None:
        path: str = scope["path"]
        if path not in WIRES:
            if path != _MODELS and not path.startswith(f"{_MODELS}/"):
                raise Denied(_not_found(path))
            if scope["method"] != "GET":
                raise Denied(_WRONG_METHOD)
            await self._authenticate(x)
            await self._look(x)
            await self._tell_models(x, path.removeprefix(_MODELS).removeprefix("/"))
            return
        x.is_call = True
        if scope["method"] != "POST":
            raise Denied(_WRONG_METHOD)
        limit_bytes = self._gateway.settings.max_body_bytes
        if int(x.headers.get("content-length", "0") or 0) > limit_bytes:
            raise Denied(_too_large(limit_bytes))
        await self._authenticate(x)
        if x.headers.get("content-encoding", "identity") != "identity":
            raise Denied(_bad("Compressed request bodies are not accepted; send plain JSON."))
        raw = await _read_body(receive, limit_bytes)
        x.body = _decode(raw, x.wire)
        await self._check_again(x)
        await self._admit(x)
        await self._guard(x, in_thread=len(raw) > _LONG_TEXT_BYTES)
        x.cache_key = cache_key(x)
        if x.cache_key is not None and await answer_from_cache(x, x.cache_key, lambda: self._check_still_good(x)):
            return
        await relay(x, receive, lambda: self._check_still_good(x))

    async def _authenticate(self, x: Exchange) -> None:
        presented = bearer(x.headers)
        found = await authenticate(self._gateway, presented, now_us=x.started_us)
        if isinstance(found, Refusal):
            if found is not STALE_KEYS and found.code != Code.INVALID_API_KEY and presented is not None:
                self._recognise(x, presented)
            raise Denied(found)
        x.grant, secret = found
        x.key_id = secret.public_id
        blocked = fleet_refusal(self._gateway, x.grant)
        if blocked is not None:
            raise Denied(blocked)

    def _recognise(self, x: Exchange, presented: str) -> None:
        """Note whose key was refused, and in which run: a known key's refusal goes into the log."""
        x.grant = self._gateway.keyring.find(presented)
        run = run_of(x.headers, {})
        if not isinstance(run, Refusal) and x.grant is not None:
            x.run = own_run(run, x.grant)

    async def _check_again(self, x: Exchange) -> None:
        """Look at the key once more: its body may have taken its time, and the key been changed meanwhile."""
        entry = self._gateway.keyring.by_public_id(x.key_id or "")
        if entry is None or entry[0] is not x.grant:
            await self._authenticate(x)

    def _check_still_good(self, x: Exchange) -> None:
        """Refuse what was revoked or blocked while the request waited; from here on such a call is cut."""
        gateway, grant = self._gateway, x.grant
        assert grant is not None
        entry = gateway.keyring.by_public_id(x.key_id or "")
        if entry is None or entry[0] is not grant:
            found = gateway.keyring.authenticate(bearer(x.headers), now_us=x.started_us)
            if isinstance(found, Refusal):
                raise Denied(found)
        blocked = fleet_refusal(gateway, grant)
        if blocked is not None:
            raise Denied(blocked)

    async def _admit(self, x: Exchange) -> None:
        """Ask everything that needs no hold: grouping, model, tools, RPM, guardrails; TPM comes with the attempt."""
        grant, gateway = x.grant, self._gateway
        assert grant is not None
        x.model_asked = x.body["model"]
        run = run_of(x.headers, x.body)
        if isinstance(run, Refusal):
            raise Denied(run)
        x.run = own_run(run, grant)
        owner, groups = gateway.prices.provider_of, gateway.groups(grant.fleet)
        if not allowed(x.body["model"], grant.models, provider_of=owner, groups=groups):
            who = grant.role or grant.alias or "this key"
            raise Denied(_model_not_allowed(x.body["model"], who, grant.models, scope="role"))
        fleet = gateway.fleet_of(grant)
        if fleet and not allowed(x.body["model"], fleet.models, provider_of=owner, groups=groups):
            raise Denied(_model_not_allowed(x.body["model"], f"Fleet {fleet.fleet}", fleet.models, scope="fleet"))
        beside = other_models(x.body)
        if beside is not None and (grant.models or (fleet and fleet.models)):
            raise Denied(_models_beside(beside))
        refusal = None if grant.tools is None else check_tools(x.body, x.wire.tools(x.body), grant)
        if refusal is not None:
            raise Denied(refusal)
        now_us = gateway.clock.now_us()
        x.rates = gateway.rate_scopes(grant, now_us, x.body["model"])
        admission = await gateway.limiter.admit(now_us, x.rates, _repeat(x, grant))
        x.readings = admission.readings
        for refusal in admission.shadowed:
            x.note(refusal)
        if admission.refusal is not None:
            raise Denied(admission.refusal)

    async def _guard(self, x: Exchange, *, in_thread: bool) -> None:
        grant = x.grant
        assert grant is not None
        asked = x.body.pop("nemo_guardrail_ids", None) or []
        if not isinstance(asked, list) or not all(isinstance(name, str) for name in asked):
            raise Denied(_bad("`nemo_guardrail_ids` must be a list of guardrail names.", "nemo_guardrail_ids"))
        if not grant.guardrails and not asked:
            x.guarded = True
            return
        names = tuple(dict.fromkeys((*grant.guardrails, *asked)))
        for name in names:
            if name not in guards.BUILTIN:
                raise Denied(_guardrail_not_found(name))
        if in_thread:  # seconds for megabytes: other requests get their turns meanwhile, and this key may lose its own
            outcome = await asyncio.to_thread(guards.apply_to_request, x.body, names)
            await self._check_again(x)
        else:
            outcome = guards.apply_to_request(x.body, names)
        x.guardrails_applied = names
        x.guardrail_notes = tuple(verdict.note for verdict in outcome.verdicts)
        x.body = outcome.body
        x.guarded = True
        if outcome.blocked is not None:
            raise Denied(guards.guardrail_refusal(outcome.blocked))

    async def _tell_models(self, x: Exchange, name: str) -> None:
        """Answer with the models that the key may use, or with the one of this name."""
        assert x.grant is not None
        names = await self._models.names(x.grant)
        if name and name not in names:
            raise Denied(_no_such_model(name))
        told = await self._models.described(x.grant, name) if name else models_object(names)
        await send_json(x.send, 200, told, x.common_headers())

    async def _denied(self, x: Exchange, refusal: Refusal) -> None:
        if not x.opened and x.grant is not None and x.is_call:
            await self._log_refusal(x, refusal)
        elif x.grant is None:
            self._gateway.metrics.refused(str(refusal.code), refusal.scope, None, None)
        if not x.started:
            if x.grant is not None and refusal is not _NO_RATES:
                await self._look(x)
            await x.refuse(refusal)
        elif x.streaming:
            await _end_stream(x, refusal)

    async def _log_refusal(self, x: Exchange, refusal: Refusal) -> None:
        """Log a refusal, before it is answered: who is refused faster than that can be written waits for it."""
        try:
            await self._gateway.store.room_for_refusal()
        finally:  # also when the caller does not wait: its record does not depend on that
            x.log_refusal(refusal)

    async def _look(self, x: Exchange) -> None:
        """Read where the rates of a request stand that was never counted, for the headers of its answer."""
        grant, gateway = x.grant, self._gateway
        if grant is None or x.readings:
            return
        now_us = gateway.clock.now_us()
        scopes = gateway.rate_scopes(grant, now_us, x.model_asked)
        try:
            used = await gateway.limiter.used(now_us, scopes)
        except LimiterUnavailable:
            return  # its answer is about something else, and comes without them
        x.readings = [reading for scope, uses in zip(scopes, used, strict=True) for reading in _readings(scope, *uses)]

    async def _answer_fault(self, x: Exchange, refusal: Refusal) -> None:
        if not x.started:  # a hold that was open has been resolved where it was taken
            await x.refuse(refusal)
        elif x.streaming and refusal is _UNAVAILABLE:
            await _end_stream(x, refusal)


async def _end_stream(x: Exchange, refusal: Refusal) -> None:
    """Tell a refusal of a further attempt to a client that has seen heartbeats, and nothing else."""
    await x.deliver(x.send({"type": "http.response.body", "body": x.wire.stream_error(refusal, x.request_id)}))


def _repeat(x: Exchange, grant: Grant) -> Repeat | None:
    """Return what tells a loop; a call that belongs to no run cannot be in one."""
    if grant.loop is None or x.run.run_id is None:
        return None
    return Repeat(run=f"{grant.fleet or ''}/{x.run.run_id}", digest=digest(x.body), rule=grant.loop)


def _readings(scope: RateScope, requests: int, tokens: int) -> Iterator[Reading]:
    """Yield where a scope's limits stand, with the longest time until their windows are empty."""
    if scope.rpm is not None:
        reset_us = WINDOW_US if requests else 0
        left = max(0, scope.rpm - requests)
        yield Reading(what="requests", limit=scope.rpm, remaining=left, reset_us=reset_us, shadow="rpm" in scope.shadow)
    if scope.tpm is not None:
        reset_us = WINDOW_US if tokens else 0
        left = max(0, scope.tpm - tokens)
        yield Reading(what="tokens", limit=scope.tpm, remaining=left, reset_us=reset_us, shadow="tpm" in scope.shadow)


def _wire_of_client(headers: dict[str, str]) -> Wire:
    """Return the wire in which a client reads errors where the path says none, as that of the list of models.

    Every request of Anthropic's clients names a version of the API.
    """
    return MESSAGES if "anthropic-version" in headers else CHAT


def decode_headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """Return the request's headers; ASGI gives names in lower case. The first of a repeated header counts."""
    pairs = scope["headers"]
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
    if len(headers) < len(pairs):
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(pairs)}
    return headers


async def _read_body(receive: Receive, limit_bytes: int) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):  # it came with its head
        body: bytes = message.get("body", b"")
        if len(body) > limit_bytes:
            raise Denied(_too_large(limit_bytes))
        return body
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise Denied(_bad("The client left before its request was complete."))
        part = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise Denied(_too_large(limit_bytes))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()


def _decode(raw: bytes, wire: Wire) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Denied(_bad(f"The body is not valid JSON: {_reason(error)}.")) from None
    if not isinstance(body, dict):
        raise Denied(_bad("The body must be a JSON object."))
    if nested_too_deep(body, raw):
        raise Denied(_bad("The body is not accepted: nested too deeply."))
    model = body.get("model")
    if not isinstance(model, str) or not model or len(model) > _MODEL_NAME_MAX:
        raise Denied(_bad("`model` must be the name of a model or a model group.", "model"))
    refusal = wire.check(body)
    if refusal is not None:
        raise Denied(refusal)
    for name in NOT_FROM_CLIENTS & body.keys():
        del body[name]  # neither a provider nor the request log gets to see it
    return body


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).rstrip(".")


def _bad(message: str, param: str | None = None) -> Refusal:
    return Refusal(status=400, code=Code.INVALID_REQUEST, message=message, param=param)


def _too_large(limit_bytes: int) -> Refusal:
    return Refusal(
        status=413,
        code=Code.REQUEST_TOO_LARGE,
        message=f"The body is larger than {limit_bytes} bytes. Shorten it, or raise `max_body_bytes` of the gateway.",
    )


def _not_found(path: str) -> Refusal:
    return Refusal(
        status=404,
        code=Code.NOT_FOUND,
        message=f"No such endpoint: {path[:100]}. There are {', '.join(WIRES)} and {_MODELS}.",
    )


def _no_such_model(name: str) -> Refusal:
    return Refusal(
        status=404,
        code=Code.MODEL_NOT_FOUND,
        message=f"This key may use no model of the name {name[:100]!r}; GET {_MODELS} lists those that it may.",
        param="model",
    )


def _guardrail_not_found(name: str) -> Refusal:
    return Refusal(
        status=400,
        code=Code.GUARDRAIL_NOT_FOUND,
        message=f"No guardrail is named {name[:100]!r}; there are {', '.join(guards.BUILTIN)}.",
        param="nemo_guardrail_ids",
    )


def _model_not_allowed(model: str, who: str, models: tuple[str, ...], *, scope: str) -> Refusal:
    return Refusal(
        status=403,
        code=Code.MODEL_NOT_ALLOWED,
        message=f"{who} may not use {model[:100]!r}; it may use {', '.join(models)}.",
        param="model",
        scope=scope,
        limit="models",
    )


def _models_beside(field: str) -> Refusal:
    return Refusal(
        status=403,
        code=Code.MODEL_NOT_ALLOWED,
        message=f"`{field}` names further models, which this key's list of models is not asked about. Leave it out, "
        "and declare a model group in the fleet instead.",
        param=field,
        scope="role",
        limit="models",
    )


_WRONG_METHOD = Refusal(
    status=405, code=Code.METHOD_NOT_ALLOWED, message=f"Use GET for {_MODELS}, POST for everything else."
)
_UNAVAILABLE = Refusal(
    status=503,
    code=Code.STORE_UNAVAILABLE,
    message="The gateway's store cannot write now, and nothing is sent that is not in it. Try again shortly.",
    retry_after_ms=1_000,
)
_NO_RATES = Refusal(
    status=503,
    code=Code.STORE_UNAVAILABLE,
    message="The gateway's rates cannot be counted now, and nothing is sent that is not. Try again shortly.",
    retry_after_ms=1_000,
)
INTERNAL = Refusal(
    status=500,
    code=Code.INTERNAL_ERROR,
    message="The gateway failed on this request; its log names the cause under the request id.",
)
