"""Assemble a gateway from its settings, and serve it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import uvicorn

from nemo_agents import environment
from nemo_agents.errors import Code, SettingsError
from nemo_agents.gateway.admin import admin_and_viewer
from nemo_agents.gateway.alerts import Alerts
from nemo_agents.gateway.app import GatewayApp
from nemo_agents.gateway.homefiles import HomeSecrets, open_home
from nemo_agents.gateway.keyring import KeyRing
from nemo_agents.gateway.onewrite import OneWriteProtocol
from nemo_agents.gateway.ownlog import LossyLogger
from nemo_agents.gateway.ports import Provider
from nemo_agents.gateway.prices import FREE, PriceBook, declared_prices
from nemo_agents.gateway.providers import LOCAL, ProviderConfig, discover
from nemo_agents.gateway.replica import Replica
from nemo_agents.gateway.rim import Clock, RandomIds, SharedClock, SystemClock
from nemo_agents.gateway.sandbox import SandboxProvider, SandboxSettings
from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.shared import open_answers, open_limiter, open_store, open_wake
from nemo_agents.gateway.state import CutOff, Gateway
from nemo_agents.gateway.sweeper import read_shared_clock, sweep
from nemo_agents.gateway.tokenizer import TOKENIZED, InputBounds
from nemo_agents.gateway.upstream import open_provider
from nemo_agents.gateway.upstream.probe import lists_models
from nemo_agents.policy.hosts import is_loopback_url
from nemo_agents.policy.pricing import Price

__all__ = ["Running", "build", "new_event_loop", "serve"]

try:
    import uvloop
except ImportError:  # not made for every platform
    uvloop = None  # type: ignore[assignment]

_GRACE_S = 10.0  # what calls in flight get at a stop, as the guides say
_LAST_WORDS_S = 3.0  # what the answers that end the rest take to be sent
_LOOK_EVERY_S = 0.05
_GC_EVERY = 20_000  # containers that came and did not go
_log = structlog.get_logger("nemo_agents.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A gateway that listens."""

    gateway: Gateway
    url: str
    secrets: HomeSecrets


def build(settings: Settings, environ: Mapping[str, str]) -> Gateway:
    """Return a gateway that has not been started. Raises SettingsError."""
    secrets = open_home(
        settings.home,
        admin_key=environ.get(environment.ADMIN_KEY),
        pepper=environ.get(environment.PEPPER),
        viewer_token=environ.get(environment.VIEWER_TOKEN),
    )
    clock: Clock = SharedClock() if settings.database else SystemClock()
    configs = discover(environ, {"providers": settings.providers}, probe=lists_models)
    store = open_store(settings, environ, clock)
    limiter = open_limiter(settings, environ, store)
    return Gateway(
        settings=settings,
        secrets=secrets,
        store=store,
        keyring=KeyRing(secrets.pepper),
        limiter=limiter,
        cache=open_answers(settings, environ),
        prices=PriceBook(
            declared={**_local_prices(configs), **declared_prices({"prices": settings.prices})},
            priced_as={name: config.priced_as for name, config in configs.items() if config.priced_as},
        ),
        bounds=InputBounds(settings.input_bound),
        providers=_providers(settings, configs, clock),
        provider_configs=configs,
        clock=clock,
        ids=RandomIds(),
    )


def _providers(settings: Settings, configs: Mapping[str, ProviderConfig], clock: Clock) -> dict[str, Provider]:
    providers: dict[str, Provider] = {
        name: open_provider(config, max_connections=settings.max_connections) for name, config in configs.items()
    }
    if settings.sandbox != "off":
        providers["sandbox"] = SandboxProvider(
            clock=lambda: clock.now_us() / 1e6,
            sleep=asyncio.sleep,
            settings=SandboxSettings.from_config(settings.sandbox_script),
        )
    return providers


def _local_prices(configs: Mapping[str, ProviderConfig]) -> dict[str, Price]:
    """Return the price of what runs on this machine: it bills nobody, so budgets let it pass at 0."""
    local = [name for name in LOCAL if name in configs and is_loopback_url(configs[name].base_url)]
    return {f"{name}/*": FREE for name in local}


@contextlib.asynccontextmanager
async def serve(
    settings: Settings, environ: Mapping[str, str], *, on_signal: Callable[[], None] | None = None
) -> AsyncIterator[Running]:
    """Serve a gateway while the block runs. Raises SettingsError when the port is taken or the store unusable."""
    configure_log(settings.log_level)
    gateway = build(settings, environ)
    alerts = Alerts.of(gateway, environ)
    async with contextlib.AsyncExitStack() as undo:
        listener = _listen(settings.host, settings.port)
        undo.callback(listener.close)
        await gateway.store.start()
        undo.push_async_callback(gateway.store.close)
        await gateway.limiter.start()
        undo.push_async_callback(gateway.limiter.close)
        undo.push_async_callback(gateway.cache.close)
        replica = Replica(gateway) if gateway.store.shared else None
        if replica is not None:
            await read_shared_clock(gateway)
            await replica.join()
            if not settings.cache:
                _log.warning("rates are counted per process without --cache", database=settings.database)
        await gateway.load()
        await gateway.price_updates.refresh()
        for provider in gateway.providers.values():
            undo.push_async_callback(provider.close)
        gateway.base_url = f"http://{_for_url(settings.host)}:{listener.getsockname()[1]}"
        if on_signal is not None:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, on_signal)
        following = [] if replica is None else [replica.follow]
        wake = None if replica is None else open_wake(settings, environ, replica.wake)
        if wake is not None:
            following.append(wake.listen)
            gateway.announce = wake.say
        async with _listening(gateway, listener, following, alerts):
            yield Running(gateway=gateway, url=gateway.base_url, secrets=gateway.secrets)


@contextlib.asynccontextmanager
async def _listening(
    gateway: Gateway,
    listener: socket.socket,
    following: Sequence[Callable[[], Coroutine[Any, Any, None]]],
    alerts: Alerts,
) -> AsyncIterator[None]:
    """Answer on a socket while the block runs. Raises what ended the server before it listened."""
    collections = gc.get_threshold()
    server = _Server(uvicorn.Config(GatewayApp(gateway, admin_and_viewer(gateway)), **_uvicorn_options()))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    daily = gateway.settings.price_updates == "daily"
    standing = [
        sweep(gateway),
        gateway.retention.keep(),
        gateway.price_updates.keep_current(daily=daily),
        *[follow() for follow in following],
    ]
    background = [asyncio.create_task(each) for each in standing]
    tasks = [serving, *background]
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)  # uvicorn tells it by an attribute alone
        if serving.done():
            serving.result()
            raise RuntimeError("the HTTP server ended before it listened")
        tasks.append(asyncio.create_task(_settle_in(gateway)))
        alerts.start()
        yield
    finally:
        server.should_exit = True
        gateway.stopping.set()
        for task in background:
            task.cancel()
        await _let_finish(gateway)
        await asyncio.gather(*tasks, return_exceptions=True)
        await alerts.stop()
        gc.set_threshold(*collections)
        gc.unfreeze()


async def _settle_in(gateway: Gateway) -> None:
    """Do what a start can leave for later: read the table of prices, which the first request would wait for."""
    try:
        await asyncio.to_thread(gateway.prices.load)
    except Exception:  # noqa: BLE001 - the first request that needs a price tries again, and says so
        _log.exception("the table of prices cannot be read")
    await _load_tokenizer(gateway)
    gc.collect()
    gc.freeze()  # what start-up made lives as long as the process: no collection needs to look at it again
    # A call makes hundreds of containers and hardly a cycle: looking for those rarely saves a tenth of its time.
    gc.set_threshold(_GC_EVERY, *gc.get_threshold()[1:])


async def _load_tokenizer(gateway: Gateway) -> None:
    if not gateway.bounds.wanted or TOKENIZED.isdisjoint(gateway.providers):
        return
    try:
        await asyncio.to_thread(gateway.bounds.load)
    except Exception as error:  # noqa: BLE001 - prompts are bounded by their bytes then, which is proven
        _log.warning("the tokenizer cannot be loaded; prompts are bounded by their bytes", error=str(error))


async def _let_finish(gateway: Gateway) -> None:
    """Give the calls in flight some time to end by themselves, and then end them with an answer that says why."""
    for _ in range(int(_GRACE_S / _LOOK_EVERY_S)):
        if not gateway.in_flight:
            return
        await asyncio.sleep(_LOOK_EVERY_S)
    stopping = CutOff(Code.GATEWAY_STOPPING, "The gateway is stopping.", scope=None, status=503)
    gateway.cut(stopping, lambda _: True)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return the fastest event loop there is: uvloop, or asyncio's own where uvloop is not made for the platform."""
    return asyncio.new_event_loop() if uvloop is None else uvloop.new_event_loop()


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: who serves decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_options() -> dict[str, Any]:
    return {
        "http": OneWriteProtocol,
        "ws": "none",
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": 60,
        "timeout_graceful_shutdown": int(_GRACE_S + _LAST_WORDS_S),
        "h11_max_incomplete_event_size": 65_536,
    }


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it; streams need it
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port} ({error.strerror or error}). "
            "Another gateway may be running there; stop it, or choose a port with --port (0 picks a free one)."
        ) from error
    listener.setblocking(False)
    return listener


def _for_url(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def configure_log(level: str) -> None:
    """Write the gateway's own log as JSON lines on standard error; control characters are escaped by JSON."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: LossyLogger(sys.stderr),
    )
    root = logging.getLogger()
    if not root.handlers:  # or it is somebody's program that has a log of its own, and the gateway is only in it
        root.addHandler(_Others())


class _Others(logging.Handler):
    """Writes the warnings and errors of the libraries (uvicorn's, asyncio's) as the gateway's own: JSON lines."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._log = structlog.get_logger("nemo_agents.gateway")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = min(record.levelno // 10 * 10, logging.CRITICAL)  # structlog knows the levels that have a name
            self._log.log(level, record.getMessage(), logger=record.name, exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 - a record that cannot be written is no reason to fail what made it
            self.handleError(record)
