"""The viewer as an ASGI application: five kinds of pages, read only.

Every answer is built by `_answer`, so that none leaves without the security headers. Rendering runs in a
worker thread, because the event loop may be carrying agents' streams at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from jinja2 import Environment
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nemo_agents.admin import wire
from nemo_agents.policy.hosts import AllowedHosts, host_allowed
from nemo_agents.secret import Secret
from nemo_agents.viewer.access import (
    COOKIE,
    COOKIE_SECONDS,
    HEADERS,
    TOKEN,
    Gate,
    without_token,
)
from nemo_agents.viewer.assets import load_assets
from nemo_agents.viewer.filters import CALL_FILTER, RUN_FILTER, Filter, Language, Parsed, parse
from nemo_agents.viewer.reader import Reader, ReadFailed
from nemo_agents.viewer.rendering import make_environment, query
from nemo_agents.viewer.runview import Scale, arrange, contents_wanted, span_texts_wanted
from nemo_agents.viewer.suspects import texts_wanted

__all__ = ["viewer_app"]

PAGE_ROWS: Final = 50
MOST_PAGES: Final = 10  # of the reader's, that one page of ours looks through for a rare match
MOST_ID: Final = 200
MOST_EVENTS: Final = 20
MOST_DIGITS: Final = 12

_Listed = TypeVar("_Listed", wire.RunPage, wire.LogPage)


def _now_us() -> int:
    return time.time_ns() // 1_000


def viewer_app(
    reader: Reader, *, token: Secret, allowed_hosts: AllowedHosts = (), now_us: Callable[[], int] = _now_us
) -> Starlette:
    """Make the viewer.

    `token` is the read token that `?token=…` must bring until a cookie does; `allowed_hosts` are host names (lower
    case, no port) beside localhost under which the viewer may be reached, or a function that knows them; `now_us` is
    the clock, in microseconds since the epoch. Raises ValueError for an empty token.
    """
    pages = _Pages(reader, now_us)
    routes = [
        Route("/", pages.home),
        Route("/runs", pages.runs),
        Route("/runs/{run_id}", pages.run),
        Route("/roles", pages.roles),
        Route("/logs", pages.logs),
        Route("/static/{name}", pages.static),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, pages=pages, gate=Gate(token), allowed_hosts=allowed_hosts)],
        exception_handlers={
            HTTPException: pages.refused,
            ReadFailed: pages.unavailable,
            Exception: pages.broken,
        },
    )
    app.router.redirect_slashes = False
    return app


class _Guard:
    """In front of every page: our host name, reading methods only, and a reader with token or cookie."""

    def __init__(self, app: ASGIApp, *, pages: _Pages, gate: Gate, allowed_hosts: AllowedHosts) -> None:
        self._app = app
        self._pages = pages
        self._gate = gate
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = Request(scope)
        refusal = await self._refusal(request)
        return await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not host_allowed(hosts[0], self._allowed_hosts):
            return await self._pages.message(
                request,
                421,
                "This address is not the viewer's",
                "The Host header names neither this machine nor an allowed host. Open the viewer at the address "
                "that nemo-agents view prints, or add this host to the gateway's allowed hosts.",
            )
        if request.method not in ("GET", "HEAD"):
            return await self._pages.message(
                request, 405, "The viewer only reads", "It answers GET and HEAD.", {"allow": "GET, HEAD"}
            )
        if _path_within(request).startswith("/static/"):
            return None  # the style sheet of the page that asks for the token; the same in every installation
        return await self._reader_refusal(request)

    async def _reader_refusal(self, request: Request) -> Response | None:
        offered = request.query_params.get(TOKEN)
        if offered is not None and self._gate.takes_token(offered):
            target = without_token(request.scope["path"], request.scope["query_string"].decode("latin-1"))
            response = _answer(b"", status=303, headers={"location": target})
            response.set_cookie(
                COOKIE,
                self._gate.cookie.reveal(),
                max_age=COOKIE_SECONDS,
                path="/",
                secure=request.url.scheme == "https",
                httponly=True,
                samesite="strict",
            )
            return response
        if offered is None and self._gate.takes_cookie(request.cookies.get(COOKIE, "")):
            return None
        return await self._pages.unauthorized(request, wrong=offered is not None)


class _Pages:
    """The pages."""

    def __init__(self, reader: Reader, now_us: Callable[[], int]) -> None:
        self._reader = reader
        self._now_us = now_us
        self._assets = load_assets()
        self._templates: Environment = make_environment(asset_names=dict(self._assets.names))

    # --- pages --------------------------------------------------------------------------------------------
    async def home(self, request: Request) -> Response:
        return _answer(b"", status=303, headers={"location": f"{_base(request)}/runs"})

    async def runs(self, request: Request) -> Response:
        parsed = self._filter(request, RUN_FILTER)
        found = parsed.filter
        rows: list[wire.RunRow] = []
        cursor = request.query_params.get("before")
        for _ in range(MOST_PAGES if not parsed.problems else 0):
            page = await _cursor_checked(
                self._reader.list_runs(
                    fleet=found.fleet,
                    role=found.role,
                    model=found.model,
                    state=found.state,
                    status=found.status,
                    since_us=found.since_us,
                    before=cursor,
                    limit=PAGE_ROWS,
                )
            )
            rows += [row for row in page.runs if found.kind is None or row.grouped == (found.kind == "run")]
            cursor = page.next
            if cursor is None or len(rows) >= PAGE_ROWS:
                break
        return await self._list(request, "runs.html", parsed, RUN_FILTER, cursor, rows=rows)

    async def logs(self, request: Request) -> Response:
        parsed = self._filter(request, CALL_FILTER)
        found = parsed.filter
        rows: list[wire.CallRow] = []
        cursor = request.query_params.get("before")
        for _ in range(MOST_PAGES if not parsed.problems else 0):
            page = await _cursor_checked(
                self._reader.list_calls(
                    run_id=found.run,
                    role=found.role,
                    model=found.model,
                    status=found.status,
                    before=cursor,
                    limit=PAGE_ROWS,
                )
            )
            rows += [row for row in page.calls if _matches(found, row)]
            cursor = page.next
            if found.since_us is not None and page.calls and page.calls[-1].started_us < found.since_us:
                cursor = None  # newest first: everything after this is older still
            if cursor is None or len(rows) >= PAGE_ROWS:
                break
        return await self._list(request, "logs.html", parsed, CALL_FILTER, cursor, rows=rows)

    async def run(self, request: Request) -> Response:
        asked = request.path_params["run_id"]
        detail = await self._reader.get_run(asked) if len(asked) <= MOST_ID else None
        if detail is None:
            return await self.message(
                request,
                404,
                "No such run",
                "Nothing is recorded under this id. It may be of another gateway, older than what is kept, or "
                "a prefix that several runs share. A run appears here with its first call.",
            )
        if detail.run.run_id != asked:  # a prefix, or `last`: the address of a page names its run
            where = f"{_base(request)}/runs/{self._templates.filters['path'](detail.run.run_id)}"
            return _answer(b"", status=303, headers={"location": where + query(**dict(request.query_params))})
        selected, selected_span = request.query_params.get("call"), request.query_params.get("span")
        start = _place(request.query_params.get("from"))
        wanted = contents_wanted(detail, selected=selected, start=start)
        wanted = list(dict.fromkeys([*wanted, *texts_wanted(detail)]))
        contents = await self._reader.get_contents(wanted) if wanted else {}
        unread = span_texts_wanted(detail, selected=selected, selected_span=selected_span, start=start)
        texts_of_spans = await self._reader.get_span_texts(detail.run, unread) if unread else {}
        now_us, scale = self._now_us(), _scale(request.query_params.get("scale"))

        def render() -> str:
            view = arrange(
                detail,
                contents,
                now_us=now_us,
                selected=selected,
                selected_span=selected_span,
                start=start,
                full=request.query_params.get("full") == "1",
                scale=scale,
                texts_of_spans=texts_of_spans,
            )
            chosen = {"selected": selected, "selected_span": selected_span, "start": start, "scale_asked": scale}
            values = {"view": view, "now_us": now_us, **chosen}
            return self._render(request, "run.html", **values)

        return _page(await run_in_threadpool(render))

    async def roles(self, request: Request) -> Response:
        fleets = await self._reader.fleet_status()
        events = await self._reader.latest_events(MOST_EVENTS)
        return await self._page_of(request, "roles.html", fleets=fleets, events=events[::-1], now_us=self._now_us())

    async def static(self, request: Request) -> Response:
        asset = self._assets.files.get(request.path_params["name"])
        if asset is None:
            raise HTTPException(404)
        return _answer(
            asset.body,
            media_type=asset.media_type,
            headers={"cache-control": "public, max-age=31536000, immutable", "accept-ranges": "none"},
        )

    # --- answers that are no page of the menu -------------------------------------------------------------
    async def message(
        self, request: Request, status: int, title: str, text: str, headers: dict[str, str] | None = None
    ) -> Response:
        page = await run_in_threadpool(self._render, request, "message.html", title=title, text=text, token_hint=None)
        return _page(page, status=status, headers=headers)

    async def unauthorized(self, request: Request, *, wrong: bool) -> Response:
        hint = "wrong" if wrong else "absent"
        title = "This token does not open the viewer" if wrong else "The viewer asks who you are"
        page = await run_in_threadpool(
            self._render,
            request,
            "message.html",
            title=title,
            text="",
            token_hint=hint,
            again=_again(request),
        )
        return _page(page, status=401)

    async def refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return await self.message(request, 404, "No such page", "The viewer has Runs, Request log and Roles.")
        return await self.message(
            request, error.status_code, "This cannot be shown", error.detail, dict(error.headers or {})
        )

    async def unavailable(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ReadFailed)
        return await self.message(
            request,
            503,
            "The gateway cannot read its store now",
            "Try again; if it stays like this, run nemo-agents doctor on the gateway's machine.",
            {"retry-after": "5"},
        )

    async def broken(self, request: Request, error: Exception) -> Response:
        del error  # it goes on to the server's log; the page tells nothing of the inside
        return await self.message(
            request,
            500,
            "This page could not be made",
            "The gateway's log has the reason. The data is untouched; nemo-agents runs show reads it too.",
        )

    # --- helpers ------------------------------------------------------------------------------------------
    def _filter(self, request: Request, language: Language) -> Parsed:
        return parse(request.query_params.get("q", "").strip(), language=language, now_us=self._now_us())

    async def _list(
        self,
        request: Request,
        template: str,
        parsed: Parsed,
        language: Language,
        cursor: str | None,
        *,
        rows: list[Any],
    ) -> Response:
        return await self._page_of(
            request,
            template,
            status=400 if parsed.problems else 200,
            rows=rows,
            text=request.query_params.get("q", "").strip(),
            problems=parsed.problems,
            language=language,
            next=cursor,
            paged="before" in request.query_params,
            now_us=self._now_us(),
        )

    async def _page_of(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        return _page(await run_in_threadpool(self._render, request, template, **values), status=status)

    def _render(self, request: Request, template: str, **values: Any) -> str:
        base = _base(request)
        return self._templates.get_template(template).render(base=base, here=_path_within(request), **values)


async def _cursor_checked(reading: Awaitable[_Listed]) -> _Listed:
    """Await a page of a list; a cursor that the reader never gave is the asker's mistake."""
    try:
        return await reading
    except ValueError:
        raise HTTPException(400, "This page mark is not valid. Go back to the newest entries.") from None


def _matches(found: Filter, row: wire.CallRow) -> bool:
    """Whether a call meets the conditions that the reader does not know."""
    return (
        (found.fleet is None or row.fleet == found.fleet)
        and (found.state is None or row.state == found.state)
        and (found.code is None or row.code == found.code)
        and (found.since_us is None or row.started_us >= found.since_us)
    )


def _place(text: str | None) -> int | None:
    """Return the place of a call in its run that `from=…` names, from 1; anything else names none."""
    if text is None or not text.isascii() or not text.isdigit():
        return None
    return int(text[:MOST_DIGITS])


def _scale(text: str | None) -> Scale | None:
    return "run" if text == "run" else "step" if text == "step" else None


def _base(request: Request) -> str:
    """Return what stands before the viewer's own paths, without a slash at its end."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _path_within(request: Request) -> str:
    return request.scope["path"].removeprefix(_base(request)) or "/"


def _again(request: Request) -> str:
    return without_token(request.scope["path"], request.scope["query_string"].decode("latin-1"))


def _page(text: str, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return _answer(text.encode(), status=status, media_type="text/html; charset=utf-8", headers=headers)


def _answer(
    body: bytes, *, status: int = 200, media_type: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    return Response(body, status_code=status, media_type=media_type, headers={**HEADERS, **(headers or {})})
