"""`/nemo/prices`: read the prices that count, and give another table."""

from __future__ import annotations

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from nemo_agents.admin.prices import PriceList, PriceRow, TableChanged
from nemo_agents.gateway.admin.access import Access, AdminRoute, Caller
from nemo_agents.gateway.admin.faults import AdminFault, bad
from nemo_agents.gateway.admin.fields import parse_fields
from nemo_agents.gateway.admin.json import json_response
from nemo_agents.gateway.prices import PriceBook
from nemo_agents.gateway.priceupdates import TABLE_BYTES_MAX
from nemo_agents.gateway.state import Gateway
from nemo_agents.policy.pricing import Price

__all__ = ["ROUTES"]

_SOURCE_LENGTH_MAX = 200
_NULL = b"null"


class _Given(msgspec.Struct):
    table: msgspec.Raw
    source: str = "admin"
    force: bool = False


async def _list(gateway: Gateway, request: Request, _caller: Caller, _raw: bytes) -> Response:
    model = request.query_params.get("model")
    rows = await run_in_threadpool(_rows, gateway.prices, model)
    table = gateway.prices.load()
    given = gateway.price_updates.given
    return json_response(
        PriceList(version=table.version, source=table.source, given=given.isoformat() if given else None, prices=rows)
    )


async def _give(gateway: Gateway, request: Request, _caller: Caller, raw: bytes) -> Response:
    given = _given(request, raw)
    former = (await run_in_threadpool(gateway.prices.load)).version
    try:
        if bytes(given.table) == _NULL:
            version = await gateway.price_updates.reset()
        else:
            version = await gateway.price_updates.give(bytes(given.table), source=given.source, force=given.force)
    except ValueError as error:
        raise bad(f"{error} The former table stays.", "table") from None
    except OSError as error:
        message = f"The table could not be kept ({error.strerror or error}), and the former one stays."
        raise AdminFault(503, message, "service_unavailable") from None
    return json_response(TableChanged(version=version, former=former))


def _given(request: Request, raw: bytes) -> _Given:
    """Read the body: the table itself, with `?force=1`, or an object with `table`, `source` and `force`."""
    if raw.lstrip()[:1] == b"[":
        return _Given(table=msgspec.Raw(raw), force=request.query_params.get("force") in ("1", "true"))
    given = parse_fields(raw, _Given)
    assert isinstance(given, _Given)
    if not 0 < len(given.source) <= _SOURCE_LENGTH_MAX:
        raise bad(f"`source` must be 1 to {_SOURCE_LENGTH_MAX} characters.", "source")
    return given


def _rows(book: PriceBook, model: str | None) -> list[PriceRow]:
    wanted = (model or "").lower()
    rows = [_row(name, price) for name, price in book.effective() if wanted in name.lower()]
    if rows or not model:
        return rows
    provider, slash, rest = model.partition("/")
    if not slash:
        provider, rest = book.provider_of(model) or "", model
    price = book.price(provider, rest)  # a name that the table knows by a rule, such as a dated one
    if price is not None:
        return [_row(f"{provider}/{rest}", price)]
    return [] if slash else [_row(name, each) for name, each in book.effective() if name.endswith("/*")]


def _row(name: str, price: Price) -> PriceRow:
    return msgspec.convert({"name": name, **msgspec.to_builtins(price)}, PriceRow)


ROUTES = [
    AdminRoute(method="GET", path="/nemo/prices", access=Access.ADMIN, handler=_list),
    AdminRoute(method="POST", path="/nemo/prices", access=Access.ADMIN, handler=_give, max_body_bytes=TABLE_BYTES_MAX),
]
