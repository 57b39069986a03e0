"""Where a gateway keeps money and rates: in its own file and memory, or in servers that many gateways share.

The drivers of those servers are optional, and imported when the settings name one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.addresses import password_of, with_password
from nemo_agents.gateway.cache import AnswerCache, MemoryCache
from nemo_agents.gateway.limiter.base import Limiter
from nemo_agents.gateway.limiter.memory import MemoryLimiter
from nemo_agents.gateway.rim import Clock
from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.stores.base import Store
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.secret import Secret

if TYPE_CHECKING:
    from nemo_agents.gateway.wake import Wake

__all__ = ["open_answers", "open_limiter", "open_store", "open_wake"]


def open_store(settings: Settings, environ: Mapping[str, str], clock: Clock) -> Store:
    """Return the store that the settings name, not started. Raises SettingsError when its driver is not installed."""
    if not settings.database:
        return SqliteStore(settings.home / "gateway.db", durability=settings.durability, clock=clock.now_us)
    try:
        from nemo_agents.gateway.stores.postgres import PostgresStore  # noqa: PLC0415 - an optional driver
    except ImportError as error:
        raise _missing(error, "database", "psycopg") from None
    password = password_of("database", settings.database_password, environ)
    address = with_password(settings.database, None, settings.database_hidden)
    return PostgresStore(address.reveal(), password=password, clock=clock.now_us)


def open_limiter(settings: Settings, environ: Mapping[str, str], store: Store) -> Limiter:
    """Return the limiter that the settings name, not started: start the store first, whose log it may need.

    Raises SettingsError when its driver is not installed.
    """
    if not settings.cache:
        return MemoryLimiter()
    try:
        from nemo_agents.gateway.limiter.redis import RedisLimiter  # noqa: PLC0415 - an optional driver
    except ImportError as error:
        raise _missing(error, "cache", "redis") from None
    return RedisLimiter(_cache(settings, environ), recent_use=store.recent_use)


def open_answers(settings: Settings, environ: Mapping[str, str]) -> AnswerCache:
    """Return where answers are kept that are given again. Open the limiter first, which says what is missing."""
    if not settings.cache:
        return MemoryCache(settings.cache_max_bytes)
    from nemo_agents.gateway.cache.redis import RedisCache  # noqa: PLC0415 - an optional driver

    return RedisCache(_cache(settings, environ), settings.cache_max_bytes)


def open_wake(settings: Settings, environ: Mapping[str, str], woken: Callable[[], None]) -> Wake | None:
    """Return how gateways tell each other of changes at once, where there is a cache; its driver is there by now."""
    if not settings.cache:
        return None
    from nemo_agents.gateway.wake import Wake  # noqa: PLC0415 - an optional driver

    return Wake(_cache(settings, environ), woken)


def _cache(settings: Settings, environ: Mapping[str, str]) -> Secret:
    password = password_of("cache", settings.cache_password, environ)
    return with_password(settings.cache, password, settings.cache_hidden)


def _missing(error: ImportError, setting: str, driver: str) -> SettingsError:
    if (error.name or "").partition(".")[0] != driver:
        raise error  # a fault of our own, not a part that is not installed
    return SettingsError(
        f"{setting} needs a driver that is not installed ({driver} is missing). "
        "Run: pip install 'nemo-agents[postgres,redis]'"
    )
