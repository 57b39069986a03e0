"""What a request may cost before it is sent: the bounds of its tokens, and whether a budget can hold it at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from msgspec import Struct, structs

from nemo_agents.errors import Code
from nemo_agents.gateway.exchange import Denied, Exchange
from nemo_agents.policy.content import Content, content_of
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import HoldRefused
from nemo_agents.policy.pricing import (
    ParamError,
    Price,
    answers_asked,
    bytes_read,
    clamp_output_tokens,
    fixed_price,
    input_tokens_estimate,
    output_cap,
    unpriced_component,
    upper_bound_nanos,
)
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.routing import SANDBOX, Target

__all__ = ["Ask", "Quote", "affordable", "ask_of", "cannot_hold", "quote"]


class Ask(Struct, frozen=True, kw_only=True):
    """What a request asks for. `cap` is the longest answer in tokens, 0 where none is generated.

    `capped` says that the caller set it; what the gateway set, it may lower.
    """

    content: Content
    text_bytes: int
    tokens_in: int  # by estimate, for rates
    cap: int
    answers: int
    capped: bool

    @property
    def tokens(self) -> int:
        """About how many tokens the call will use, for rates."""
        return self.tokens_in + self.cap * self.answers


class Quote(Struct, frozen=True, kw_only=True):
    """The price of one attempt and the bounds of its text's tokens and of one answer's.

    `fixed`: the role declared the price of the request as a whole.
    """

    price: Price | None
    fixed: bool
    tokens_in_max: int
    cap: int

    def most_nanos(self, ask: Ask) -> int | None:
        """Return what the attempt costs at most; None where no price is known, which is not free."""
        return None if self.price is None else self.hold_nanos(ask)

    def hold_nanos(self, ask: Ask) -> int:
        """Return what the attempt costs at most; nothing where no price is known, which no budget lets pass."""
        if self.price is None:
            return 0
        return upper_bound_nanos(self.price, self.tokens_in_max, self.cap * ask.answers, ask.content)

    def clamped(self, ask: Ask, refused: HoldRefused) -> Quote | None:
        """Return the quote with the longest answer that the budgets leave room for; None when they leave none for any.

        A cap that the caller set is the caller's to lower, and a fixed price does not fall with it.
        """
        if not self._may_lower(ask):
            return None
        assert self.price is not None
        left = [nanos for b in (*refused.balances, refused.balance) if (nanos := b.left_nanos) is not None]
        cap = clamp_output_tokens(
            self.price, self.tokens_in_max, self.cap, min(left, default=0), content=ask.content, answers=ask.answers
        )
        return None if cap is None else structs.replace(self, cap=cap)

    def at_least(self, ask: Ask, refused: HoldRefused) -> HoldRefused:
        """Return a refusal as it is told: of what the call needs with the shortest answer that it may be given."""
        if not self._may_lower(ask):
            return refused
        return replace(refused, needed_nanos=structs.replace(self, cap=1).hold_nanos(ask))

    def _may_lower(self, ask: Ask) -> bool:
        return not (ask.capped or self.fixed or self.price is None or self.cap < 1)


def ask_of(x: Exchange) -> Ask:
    """Return what a request asks for. Raises Denied for parameters that cannot be meant."""
    content = content_of(x.body)
    text_bytes = bytes_read(x.body) - content.media_bytes
    generates = x.wire.generates
    try:
        set_cap = output_cap(x.body, 0) if generates else 0
        answers = answers_asked(x.body) if generates else 1
    except ParamError as error:
        raise Denied(Refusal(status=400, code=Code.INVALID_REQUEST, message=str(error), param=error.param)) from None
    return Ask(
        content=content,
        text_bytes=text_bytes,
        tokens_in=input_tokens_estimate(x.body, text_bytes),
        cap=(set_cap or x.gateway.settings.default_max_output_tokens) if generates else 0,
        answers=answers,
        capped=set_cap > 0,
    )


def quote(x: Exchange, grant: Grant, target: Target, ask: Ask, body: Mapping[str, Any] | None = None) -> Quote:
    """Return the price of a request at a target: the target's own, else what the role declares for a request.

    `body` is what the target reads, where that is not what the client wrote.
    """
    price, fixed = _price(x, grant, target)
    if price is None or fixed:
        return Quote(price=price, fixed=fixed, tokens_in_max=0, cap=ask.cap)
    read: Mapping[str, Any] = x.body
    text_bytes = ask.text_bytes
    if body is not None:
        read, text_bytes = body, bytes_read(body) - content_of(body).media_bytes
    tokens_in_max = x.gateway.bounds.input_tokens(target.provider, target.model, read, text_bytes)
    return Quote(price=price, fixed=False, tokens_in_max=tokens_in_max, cap=ask.cap)


def _price(x: Exchange, grant: Grant, target: Target) -> tuple[Price | None, bool]:
    """Return what a target costs, and whether that is the role's price for the request as a whole."""
    price = x.gateway.prices.price(target.provider, target.model)
    if price is None and grant.request_nanos is not None:
        return fixed_price(grant.request_nanos), True
    return price, False


def affordable(x: Exchange, targets: Sequence[Target], ask: Ask) -> Sequence[Target]:
    """Return the targets whose cost has an upper bound, wherever a budget has to hold it.

    Raises Denied when none has; a budget in mode `shadow` only notes it.
    """
    grant, gateway = x.grant, x.gateway
    assert grant is not None
    scopes = gateway.budget_scopes(grant, run_id=x.run.run_id, caps=x.run.caps, now_us=x.started_us)
    if all([scope.limit_nanos is None for scope in scopes]):  # noqa: C419 - a third of a generator's time, in every call
        return targets
    refusals = [cannot_hold(target, *_price(x, grant, target), ask) for target in targets]
    if not any(refusals):
        return targets
    enforced = any(scope.guard_nanos is not None for scope in scopes)
    limits = [scope.kind for scope in scopes if (scope.guard_nanos if enforced else scope.limit_nanos) is not None]
    whose = f"the budget of the {' and the '.join(dict.fromkeys(limits))}"
    refusals = [cannot_hold(target, *_price(x, grant, target), ask, whose=whose) for target in targets]
    passing = [target for target, refusal in zip(targets, refusals, strict=True) if refusal is None]
    if passing:
        return passing if enforced else targets
    refusal = refusals[0]
    assert refusal is not None
    if enforced:
        raise Denied(refusal)
    x.note(refusal)
    return targets


def cannot_hold(
    target: Target,
    price: Price | None,
    fixed: bool,  # noqa: FBT001 - a pair with the price
    ask: Ask,
    *,
    whose: str = "a budget",
) -> Refusal | None:
    """Say why the budget `whose` cannot hold a request at a target; None when its cost has an upper bound."""
    if fixed:
        return None
    if ask.content.unbounded is not None:
        return _unbounded(ask.content.unbounded, whose)
    # The sandbox charges what it stands for: a price of its own would be asked for by no name.
    name = target.model if target.provider == SANDBOX else f"{target.provider}/{target.model}"
    if price is None:
        return _unpriced(name, whose)
    part = unpriced_component(price, ask.content)
    return None if part is None else _unpriced(name, whose, part)


def _unbounded(path: str, whose: str) -> Refusal:
    if path.endswith((".image_url", ".input_image")):
        remedy = (
            'Beside the URL of the image, set "detail" to "low", "high" or "auto" (without one, or with an unknown '
            "one, its tokens have no bound), or send it as a data: URL"
        )
    elif path.startswith("tools"):
        remedy = "Leave it out, or offer a function of your own instead: what a provider's own tool does has no bound"
    else:
        remedy = "Leave it out, or send what it holds as text"
    message = (
        f"{path} has no upper bound in tokens, so {whose} cannot hold it. {remedy}; "
        f"or call where no budget applies (role, fleet, run)."
    )
    return Refusal(status=400, code=Code.CONTENT_NOT_BOUNDABLE, message=message, param=path)


def _unpriced(name: str, whose: str, part: str | None = None) -> Refusal:
    what, fields = f"{part} of {name}" if part else name, "input_per_mtok and output_per_mtok"
    message = (
        f"No price is known for {what}, so {whose} cannot hold it. "
        f'Declare one in gateway.toml: [prices."{name}"] with {fields}{f" and {part}_per_mtok" if part else ""}'
        f"{'' if part else '; or give the role a price_per_request'}."
    )
    return Refusal(status=400, code=Code.MODEL_NOT_PRICED, message=message, param="model")
