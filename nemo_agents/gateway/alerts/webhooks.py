"""Deliveries to webhooks: at least once, by one gateway at a time, each webhook on its own.

The store keeps what is still to be delivered. A gateway claims some of it for as long as a lease, and hands it to one
worker per webhook: a receiver that hangs keeps its own worker busy, never another's. While a receiver fails, one
delivery at a time tries it, and the others are put off. What was claimed by a gateway that died is due again when
the lease ends; the receiver knows a repetition by its `webhook-id`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx
import msgspec
import structlog

from nemo_agents import __version__
from nemo_agents.admin.wire import EventRow
from nemo_agents.gateway.alerts.destinations import Destination
from nemo_agents.gateway.alerts.signing import signature_headers
from nemo_agents.gateway.stores.base import Delivery, Store

__all__ = ["GIVE_UP_US", "Outcome", "Webhooks", "event_body", "make_client", "retry_after_us", "retry_delay_us", "send"]

GIVE_UP_US: Final = 24 * 3_600_000_000
"""The age of an event at which its delivery is given up."""
LEASE_US: Final = 120_000_000
POLL_S: Final = 5.0
_CLAIM = 50
_QUEUE_MAX = 200
_FIRST_DELAY_US = 5_000_000
_DELAY_MAX_US = 3_600_000_000
_BODY_READ_MAX = 16 * 1024
_GONE = 410
_DIGITS_MAX = 9
_log = structlog.get_logger("nemo_agents.gateway")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a try went: `error` None is done; `final` says that no other try is wanted, `wait_us` none before then."""

    error: str | None = None
    final: bool = False
    wait_us: int = 0


def retry_delay_us(failures: int, dice: float) -> int:
    """Return how long to wait after so many failures (1 and more): 5 s, 20 s, 80 s … up to an hour.

    `dice`, from 0 to 1, spreads each by half to either side, so that gateways and deliveries do not come together.
    """
    delay = min(_DELAY_MAX_US, _FIRST_DELAY_US * 4 ** min(failures - 1, 10))
    return int(delay * (0.5 + dice))


def retry_after_us(text: str, now_us: int) -> int:
    """Return how long a receiver wants to be left alone, up to an hour; 0 for what is no `Retry-After`.

    It has a number of seconds or a date (RFC 9110, section 10.2.3).
    """
    if text.isascii() and text.isdigit():
        wait_us = int(text[:_DIGITS_MAX]) * 1_000_000
    else:
        try:
            at = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return 0
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        wait_us = int(at.timestamp() * 1_000_000) - now_us
    return max(0, min(wait_us, _DELAY_MAX_US))


def make_client() -> httpx.AsyncClient:
    """Return the client for deliveries: no proxy and no credentials of the environment, no redirects."""
    return httpx.AsyncClient(
        trust_env=False,
        follow_redirects=False,
        headers={"user-agent": f"nemo-agents/{__version__}"},
        timeout=None,  # noqa: S113 - a try as a whole has a time-out, see `send`
        limits=httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=30),
    )


def event_body(event: EventRow) -> bytes:
    """Return the body of a delivery: `type`, `timestamp` and `data`, as Standard Webhooks has it."""
    return msgspec.json.encode({"type": event.kind, "timestamp": _iso(event.at_us), "data": event})


async def send(client: httpx.AsyncClient, destination: Destination, event: EventRow, *, timestamp_s: int) -> Outcome:
    """Try one delivery. Never raises for what a receiver does, and takes at most the destination's time-out."""
    body = event_body(event)
    headers = signature_headers(destination.secrets, event_id=event.event_id, timestamp_s=timestamp_s, body=body)
    headers |= {"content-type": "application/json", "accept-encoding": "identity"}
    try:
        async with asyncio.timeout(destination.timeout_s):
            async with client.stream("POST", destination.url, content=body, headers=headers) as answer:
                await _skim(answer)
    except TimeoutError:
        return Outcome(error=f"no answer within {destination.timeout_s:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
        return Outcome(error=type(error).__name__)
    if answer.is_success:
        return Outcome()
    return Outcome(
        error=f"status {answer.status_code}",
        final=answer.status_code == _GONE,
        wait_us=retry_after_us(answer.headers.get("retry-after", ""), timestamp_s * 1_000_000),
    )


async def _skim(answer: httpx.Response) -> None:
    """Read an answer that is short, so that its connection can be used again; leave a long one."""
    size = 0
    async for piece in answer.aiter_raw():
        size += len(piece)
        if size > _BODY_READ_MAX:
            return


class Webhooks:
    """Makes the deliveries of one gateway."""

    def __init__(
        self,
        store: Store,
        destinations: Sequence[Destination],
        *,
        now_us: Callable[[], int],
        client: httpx.AsyncClient,
        delay_us: Callable[[int], int] = lambda failures: retry_delay_us(failures, random.random()),  # noqa: S311 - spreads load, hides nothing
        poll_s: float = POLL_S,
        lease_us: int = LEASE_US,
    ) -> None:
        self._store = store
        self._workers = {each.name: _Worker(self, each) for each in destinations}
        self.now_us = now_us
        self.client = client
        self.delay_us = delay_us
        self._poll_s = poll_s
        self._lease_us = lease_us
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look for deliveries now: an event was stored."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver, until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for worker in self._workers.values():
                workers.create_task(worker.run())
            while True:
                try:
                    await self.hand_out()
                except Exception:  # noqa: BLE001 - a store that is down now is asked again
                    _log.exception("webhook deliveries cannot be read")
                try:
                    async with asyncio.timeout(self._poll_s):
                        await self._woken.wait()
                except TimeoutError:
                    pass
                self._woken.clear()

    async def hand_out(self) -> None:
        """Claim everything that is due and hand it to the workers. Raises StoreUnavailable.

        What a busy worker has no room for is left to its lease: claimed, it hides nobody else's deliveries.
        """
        while self._workers:
            now_us = self.now_us()
            found = await self._store.claim_deliveries(now_us, lease_us=self._lease_us, limit=_CLAIM)
            for delivery in found:
                worker = self._workers.get(delivery.webhook)
                if worker is not None:
                    worker.take(delivery, until_us=now_us + self._lease_us)
                else:
                    await self.put_off(delivery, f"no webhook {delivery.webhook} is configured", delivery.attempts + 1)
            if len(found) < _CLAIM:
                return

    async def put_off(self, delivery: Delivery, error: str, failures: int, *, wait_us: int = 0) -> None:
        """Note that a delivery is to be tried again after so many failures, or that it is too old for that.

        `wait_us` is the least that it has to wait.
        """
        retry_us: int | None = self.now_us() + max(wait_us, self.delay_us(failures))
        if retry_us is not None and retry_us - delivery.event.at_us > GIVE_UP_US:
            retry_us = None
            self._given_up(delivery, error)
        await self._store.end_delivery(delivery.event.seq, delivery.webhook, retry_us=retry_us, error=error)

    async def finish(self, delivery: Delivery, error: str | None) -> None:
        """Note that a delivery is done, or with an error that it is given up."""
        if error is not None:
            self._given_up(delivery, error)
        await self._store.end_delivery(delivery.event.seq, delivery.webhook, retry_us=None, error=error)

    def _given_up(self, delivery: Delivery, error: str) -> None:
        _log.error("webhook delivery given up", webhook=delivery.webhook, event_id=delivery.event.event_id, error=error)


class _Worker:
    """Makes the deliveries of one webhook, one after the other."""

    def __init__(self, webhooks: Webhooks, destination: Destination) -> None:
        self._webhooks = webhooks
        self._destination = destination
        self._queue: asyncio.Queue[tuple[Delivery, int]] = asyncio.Queue(_QUEUE_MAX)
        self._failures = 0  # in a row
        self._rests_until_us = 0
        self._wanted_until_us = 0  # that is how long the receiver itself wants it to rest

    def take(self, delivery: Delivery, *, until_us: int) -> None:
        """Put a delivery in the queue, claimed until then; without room it is dropped, and due again by then."""
        if not self._queue.full():
            self._queue.put_nowait((delivery, until_us))

    async def run(self) -> None:
        """Deliver, until cancelled."""
        while True:
            delivery, until_us = await self._queue.get()
            try:
                await self._deliver(delivery, until_us)
            except Exception:  # noqa: BLE001 - it is due again when its lease ends
                _log.exception("webhook delivery cannot be noted", webhook=self._destination.name)

    async def _deliver(self, delivery: Delivery, until_us: int) -> None:
        webhooks, now_us = self._webhooks, self._webhooks.now_us()
        if now_us + int(self._destination.timeout_s * 1e6) > until_us:
            return  # it may be another gateway's by the time that this try ends
        if now_us < self._rests_until_us:
            why, failures = "put off: the receiver fails", max(1, self._failures)
            await webhooks.put_off(delivery, why, failures, wait_us=self._wanted_until_us - now_us)
            return
        outcome = await send(webhooks.client, self._destination, delivery.event, timestamp_s=now_us // 1_000_000)
        if outcome.error is None or outcome.final:
            self._failures, self._rests_until_us = 0, 0
            await webhooks.finish(delivery, outcome.error)
            return
        self._failures += 1
        failures = max(self._failures, delivery.attempts + 1)
        _log.warning(
            "webhook delivery failed",
            webhook=self._destination.name,
            event_id=delivery.event.event_id,
            attempt=delivery.attempts + 1,
            error=outcome.error,
        )
        now_us = webhooks.now_us()
        self._wanted_until_us = now_us + outcome.wait_us
        self._rests_until_us = max(now_us + webhooks.delay_us(self._failures) // 2, self._wanted_until_us)
        await webhooks.put_off(delivery, outcome.error, failures, wait_us=outcome.wait_us)


def _iso(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, tz=UTC).isoformat().replace("+00:00", "Z")
