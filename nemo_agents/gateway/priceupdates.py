"""New tables of prices for a running gateway: given by an admin, or fetched once a day; kept for the next start.

A table is read whole and compared with the one that counts before anything changes. It is kept first and counts then,
so that what counts survives a restart. Calls on their way are posted at the price that their hold was opened with.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import httpx
import msgspec
import structlog

from nemo_agents.gateway.prices import PriceBook

if TYPE_CHECKING:
    from nemo_agents.gateway.pricetable import PriceTable

__all__ = ["TABLE_BYTES_MAX", "DocumentPriceStore", "FilePriceStore", "PriceStore", "PriceUpdates", "fetch_table"]

TABLE_BYTES_MAX: Final = 16 * 1024 * 1024
_DOCUMENT: Final = "prices"
_LOOK_EVERY_S: Final = 60.0
_FETCH_EVERY: Final = timedelta(days=1)
_FETCH_AGAIN: Final = timedelta(hours=1)
_FETCH_TIMEOUT_S: Final = 30.0
_UPDATE: Final = "update"
_SOURCE_SHOWN: Final = 80
_log = structlog.get_logger("nemo_agents.gateway")


class PriceStore(Protocol):
    """Where a given table is kept: a file, or a document that many gateways share."""

    @property
    def shared(self) -> bool:
        """Whether another gateway may put a table there, so that it has to be looked at now and then."""

    async def load(self) -> bytes | None:
        """Return what was saved last; None or nothing when no table is kept."""

    async def save(self, raw: bytes) -> None:
        """Keep this in place of what was kept before, whole or not at all."""


class FilePriceStore:
    """Keeps the table in one file, readable by its owner alone."""

    shared = False

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self) -> bytes | None:
        """Read the file. Raises OSError when it is there and cannot be read."""
        return await asyncio.to_thread(self._load)

    async def save(self, raw: bytes) -> None:
        """Write the file anew and put it in place at once. Raises OSError."""
        await asyncio.to_thread(self._save, raw)

    def _load(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def _save(self, raw: bytes) -> None:
        draft = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        finally:
            draft.unlink(missing_ok=True)


class _Documents(Protocol):
    async def document(self, name: str) -> bytes | None: ...
    async def put_document(self, name: str, body: bytes) -> None: ...


class DocumentPriceStore:
    """Keeps the table as a document of the gateways' common store."""

    shared = True

    def __init__(self, documents: _Documents) -> None:
        self._documents = documents

    async def load(self) -> bytes | None:
        """Read the document."""
        return await self._documents.document(_DOCUMENT)

    async def save(self, raw: bytes) -> None:
        """Replace the document."""
        await self._documents.put_document(_DOCUMENT, raw)


class _Kept(msgspec.Struct, frozen=True):
    """A table as it is kept: where it came from, when, and its own text."""

    source: str
    given: datetime
    table: msgspec.Raw


class PriceUpdates:
    """Changes the table of one `PriceBook`; the daily one is at `update_url`, "" for the package's own address."""

    def __init__(
        self,
        book: PriceBook,
        store: PriceStore,
        *,
        update_url: str = "",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._book = book
        self._store = store
        self._sleep = sleep
        self._update_url = update_url
        self._changing = asyncio.Lock()
        self._kept_raw: bytes | None = None
        self.given: datetime | None = None

    async def give(self, raw: bytes, *, source: str, force: bool = False, whole: bool = True) -> str:
        """Check a table, keep it, and let it count; return its version.

        Without `force` no price may be a thousand times off the former one and, where it is to be a `whole` table, no
        model of the former one may be missing. Raises PriceTableError, upon which the former table stays, and what
        the store raises.
        """
        async with self._changing:
            kept = _Kept(source=source, given=self._book.now().astimezone(UTC), table=msgspec.Raw(raw))
            table = await asyncio.to_thread(_read, self._book, kept, check=not force, whole=whole and not force)
            body = msgspec.json.encode(kept)
            await self._store.save(body)
            self._let_count(table, kept, body)
            return table.version

    async def reset(self) -> str:
        """Let the package's own table count again, also after a restart; return its version."""
        async with self._changing:
            await self._store.save(b"")
            self._let_count(None, None, b"")
            return (await asyncio.to_thread(self._book.load)).version

    async def refresh(self) -> bool:
        """Let the kept table count, where it is another one than counts now; say whether it is.

        A table that cannot be read changes nothing and is logged in one line: at the start the package's own counts.
        """
        async with self._changing:
            try:
                body = await self._store.load() or b""
            except OSError as error:
                _log.error("the kept table of prices cannot be read", error=str(error))
                return False
            if body == (self._kept_raw or b""):
                return False
            self._kept_raw = body  # also what is damaged: once is enough to say it
            if not body:
                self._let_count(None, None, body)
                return True
            try:
                kept = msgspec.json.decode(body, type=_Kept)
                table = await asyncio.to_thread(_read, self._book, kept)
            except (ValueError, RecursionError) as error:
                _log.error(
                    "the kept table of prices is damaged and does not count; give it again", error=str(error)[:300]
                )
                return False
            self._let_count(table, kept, body)
            return True

    async def keep_current(self, *, daily: bool) -> None:
        """Fetch a table a day, where `daily`, and follow what other gateways keep, until cancelled."""
        due = (self.given + _FETCH_EVERY) if self.given is not None else self._book.now()
        while daily or self._store.shared:
            if daily and self._book.now() >= due:
                due = self._book.now() + (_FETCH_EVERY if await self.fetch() else _FETCH_AGAIN)
            await self._sleep(_LOOK_EVERY_S)
            if self._store.shared:
                try:
                    await self.refresh()
                except Exception as error:  # noqa: BLE001 - a store that is down now is asked again in a minute
                    _log.warning("the kept table of prices cannot be looked at", error=str(error)[:300])

    async def fetch(self) -> bool:
        """Fetch the maintained table and let it count; say whether that went well. A failure is logged, no more."""
        try:
            url = self._update_url or await asyncio.to_thread(_package_url)
            version = await self.give(await fetch_table(url), source=_UPDATE, whole=False)  # old models leave it
        except Exception as error:  # noqa: BLE001 - whatever a stranger's answer sets off, the former table stays
            _log.warning("the table of prices could not be updated", error=f"{type(error).__name__}: {error}"[:300])
            return False
        _log.info("the table of prices was updated", version=version)
        return True

    def _let_count(self, table: PriceTable | None, kept: _Kept | None, body: bytes) -> None:
        self._book.replace(table)
        self._kept_raw = body
        self.given = kept.given if kept else None


async def fetch_table(url: str) -> bytes:
    """Return what this address answers, at most `TABLE_BYTES_MAX` bytes. Raises httpx.HTTPError or ValueError."""
    async with (
        httpx.AsyncClient(timeout=_FETCH_TIMEOUT_S, follow_redirects=False) as client,
        client.stream("GET", url, headers={"accept": "application/json"}) as response,
    ):
        response.raise_for_status()
        raw = bytearray()
        async for chunk in response.aiter_bytes():
            raw += chunk
            if len(raw) > TABLE_BYTES_MAX:
                raise ValueError(f"the table is larger than {TABLE_BYTES_MAX} bytes")
    return bytes(raw)


def _package_url() -> str:
    from genai_prices.update_prices import DEFAULT_UPDATE_URL  # noqa: PLC0415 - slow, as the table itself

    return DEFAULT_UPDATE_URL


def _read(book: PriceBook, kept: _Kept, *, check: bool = False, whole: bool = False) -> PriceTable:
    from nemo_agents.gateway.pricefile import check_against, check_complete, read_table  # noqa: PLC0415 - slow, as the table itself
    from nemo_agents.gateway.pricetable import PriceTable  # noqa: PLC0415 - likewise

    raw = bytes(kept.table)
    providers = read_table(raw)
    if check:
        check_against(book.load().all, providers)
    if whole:
        check_complete(book.load().all, providers)
    return PriceTable(book.now, providers, version_text=_version(raw, kept), source=kept.source)


def _version(raw: bytes, kept: _Kept) -> str:
    """Name a table: that of the package's maintainers by the package, any other as what it was given as."""
    from nemo_agents.gateway.pricetable import package_version, short_hash  # noqa: PLC0415 - slow, as the table itself

    whose = f"genai-prices {package_version()}" if kept.source == _UPDATE else f"given {kept.source[:_SOURCE_SHOWN]}"
    return f"{whose} {short_hash(raw)} {kept.given.date().isoformat()}"
