"""How the gateway is configured: command line over environment over `gateway.toml` over these defaults.

`docs/reference/settings.md` is generated from this class: a field's `help` is its documentation.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nemo_agents.errors import DeclarationError, SettingsError
from nemo_agents.gateway.addresses import PASSWORD_OF, parts_of
from nemo_agents.groups import RETRIES_MAX, ModelGroup, check_groups, group_from_table
from nemo_agents.policy.hosts import host_allowed
from nemo_agents.secret import Secret

__all__ = ["Settings", "load_settings"]

Sandbox = Literal["auto", "on", "off"]
Durability = Literal["process", "power"]
Content = Literal["full", "none"]
Readers = Literal["local", "key", "off"]
_DAYS_MAX = 36_500


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The gateway's settings, as `[gateway]` in `gateway.toml` names them; the other tables stand beside it."""

    home: Path
    host: str = _setting("127.0.0.1", "Address to listen on. Anything but a loopback address needs `allowed_hosts`.")
    port: int = _setting(4141, "Port to listen on; 0 picks a free one and prints it.")
    allowed_hosts: tuple[str, ...] = _setting(
        (), "Host names beside localhost under which clients may reach the gateway (guards against DNS rebinding)."
    )
    sandbox: Sandbox = _setting(
        "auto",
        "`auto`: the sandbox stands in for every model while no provider has credentials; "
        "`on`: it stands in for every model whose provider has none; `off`: never.",
    )
    content: Content = _setting(
        "full", "What the request log keeps of prompts and answers: `full` (after guardrails) or `none`."
    )
    keep_content_days: int = _setting(
        30,
        "Days for which prompts, answers and the texts of spans are kept after their run was over: most of the log is "
        "made of them, and they should lie about least. 0 keeps them for ever.",
    )
    keep_runs_days: int = _setting(
        0,
        "Days for which runs, calls and spans are kept after the run was over. 0 keeps them for ever: what money was "
        "spent on is not forgotten unasked. Balances and the ledger's entries are kept in any case.",
    )
    durability: Durability = _setting(
        "process",
        "`process`: what was acknowledged survives a killed process; `power`: a power cut too, for a flush a commit.",
    )
    database: str = _setting(
        "",
        "Address of a PostgreSQL database (`postgresql://…`) that many gateways share; empty keeps everything in one "
        "SQLite file in the home. A password may stand in NEMO_DATABASE_PASSWORD instead.",
    )
    cache: str = _setting(
        "",
        "Address of a Valkey or Redis server (`redis://…`) in which many gateways count rates; empty counts them in "
        "this process alone. A password may stand in NEMO_CACHE_PASSWORD instead.",
    )
    cache_max_bytes: int = _setting(
        64 * 1024 * 1024,
        "Largest number of bytes that the answers take which roles with `cache` keep: in this process, or with the "
        "setting `cache` in that server, those of all its gateways together. 0 keeps none.",
    )
    metrics: Readers = _setting(
        "local",
        "Who may read `/metrics`: `local`: programs on this machine, and whoever has the admin key; `key`: the admin "
        "key alone; `off`: nobody.",
    )
    default_rpm: int = _setting(
        60_000, "Requests per minute of a role that declares none: a ceiling for runaway loops, told in every answer."
    )
    default_tpm: int = _setting(1_000_000_000, "Tokens per minute of a role that declares none, told in every answer.")
    max_body_bytes: int = _setting(10 * 1024 * 1024, "Largest request body in bytes; beyond it 413.")
    default_max_output_tokens: int = _setting(
        4096,
        "Output cap in tokens that is written into a request which sets none, so that its cost has an upper bound.",
    )
    connect_timeout_s: float = _setting(5.0, "Seconds to connect to a provider.")
    price_updates: Literal["off", "daily"] = _setting(
        "off", "`daily`: fetch the maintained table of prices once a day; `off`: use what is installed or was given."
    )
    input_bound: Literal["auto", "bytes", "tokenizer"] = _setting(
        "auto",
        "How the tokens of a prompt are bounded before it is sent: by its UTF-8 `bytes` (proven), by a `tokenizer` "
        "where one fits (nearer; needs the extra of that name), `auto`: the tokenizer if it is installed.",
    )
    max_attempts: int = _setting(
        4, "Attempts of one request in all: the first one, retries, and those at other deployments of a model group."
    )
    retries: int = _setting(
        1,
        "How often a model is asked again that has no other deployment beside it, after no connection, 408, 409, 429 "
        "and 5xx. A model group may say it for itself.",
    )
    spike_factor: float = _setting(
        3.0, "A role that spends this many times its usual hour raises a spend-spike alert; 0 raises none."
    )
    first_byte_timeout_s: float = _setting(120.0, "Seconds until a provider's answer begins.")
    first_token_timeout_s: float = _setting(
        300.0, "Seconds until a stream says something: models that think first are silent for minutes."
    )
    idle_timeout_s: float = _setting(60.0, "Seconds between two pieces of a provider's answer.")
    heartbeat_s: float = _setting(
        15.0,
        "Seconds of silence in a stream after which the client gets a comment, so that no proxy cuts it; 0: never.",
    )
    client_timeout_s: float = _setting(
        60.0, "Seconds that a client may leave its answer unread; then it counts as gone, and a stream is drained."
    )
    hold_ttl_s: float = _setting(
        900.0,
        "Seconds after which the hold of a call that has not ended is charged in full. A call that goes on longer is "
        "corrected when it ends; what a killed replica held is blocked until then.",
    )
    drain_timeout_s: float = _setting(
        30.0, "Seconds that a stream is read on after its client left, to learn what it cost."
    )
    max_connections: int = _setting(512, "Connections to one provider at a time.")
    rotation_grace_s: float = _setting(86_400.0, "Seconds that a rotated key's old secret stays valid.")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "What the gateway's own log shows.")
    providers: Mapping[str, Any] = field(default_factory=dict, repr=False)  # headers of it may be credentials
    prices: Mapping[str, Any] = field(default_factory=dict)
    sandbox_script: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[ModelGroup, ...] = ()  # of every fleet that has none of the same name
    webhooks: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the path of a `url` may be a secret
    source: Path | None = None  # the file they were read from, for messages
    database_password: Secret | None = None  # taken out of the address, which then may be shown
    cache_password: Secret | None = None
    database_hidden: Secret | None = None  # parameters of the address that are not shown, such as `sslpassword`
    cache_hidden: Secret | None = None

    def __post_init__(self) -> None:
        for name in ("database", "cache"):
            parts = parts_of(name, getattr(self, name))
            object.__setattr__(self, name, parts.shown)
            if parts.password is not None:
                object.__setattr__(self, f"{name}_password", parts.password)
            if parts.hidden is not None:
                object.__setattr__(self, f"{name}_hidden", parts.hidden)
        counts = ("max_body_bytes", "default_max_output_tokens", "max_connections", "default_rpm", "default_tpm")
        for name in (*counts, "max_attempts"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "connect_timeout_s",
            "first_byte_timeout_s",
            "first_token_timeout_s",
            "idle_timeout_s",
            "client_timeout_s",
            "hold_ttl_s",
        ):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise SettingsError(f"{name} must be more than 0 seconds, not {getattr(self, name)}")
        for name in ("drain_timeout_s", "rotation_grace_s", "spike_factor", "heartbeat_s", "cache_max_bytes"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise SettingsError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("keep_content_days", "keep_runs_days"):
            if not 0 <= getattr(self, name) <= _DAYS_MAX:
                raise SettingsError(f"{name} must be between 0 and {_DAYS_MAX} days, not {getattr(self, name)}")
        if not 0 <= self.retries <= RETRIES_MAX:
            raise SettingsError(f"retries must be between 0 and {RETRIES_MAX}, not {self.retries}")
        if self.hold_ttl_s <= self.first_byte_timeout_s:
            raise SettingsError(
                f"hold_ttl_s ({self.hold_ttl_s}) must be longer than a call may take: more than "
                f"first_byte_timeout_s ({self.first_byte_timeout_s})"
            )
        if not self.allowed_hosts and not host_allowed(f"[{self.host}]" if ":" in self.host else self.host, ()):
            raise SettingsError(
                f"host {self.host} is reached from other machines: list the names they use in `allowed_hosts` "
                "of [gateway], so that no web page can pose as one of them"
            )
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port must be between 0 and 65535, not {self.port}")


_TABLES = {"providers": "providers", "prices": "prices", "sandbox": "sandbox_script", "webhooks": "webhooks"}


def load_settings(home: Path, *, config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read `config` (default `<home>/gateway.toml`, which need not exist) and apply overrides that are not None.

    Raises SettingsError naming the file, the field, the value and what would be right.
    """
    path = config or home / "gateway.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if config is not None:
            raise SettingsError(f"{config}: no such configuration file") from None
        document = {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as TOML: {error}") from error
    values = _from_document(document, path)
    values |= {name: value for name, value in (overrides or {}).items() if value is not None}
    return Settings(home=home, source=path, **values)


def _from_document(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    known = {f.name for f in dataclasses.fields(Settings) if "help" in f.metadata}
    hints = get_type_hints(Settings)
    unknown = set(document) - {"gateway", "groups", *_TABLES}
    if unknown:
        raise SettingsError(
            f"{path}: unknown table [{min(unknown)}]; there are [gateway], "
            '[providers.<name>], [groups.<name>], [prices."<provider>/<model>"], [webhooks.<name>] and [sandbox]'
        )
    values: dict[str, Any] = {}
    for name, value in document.get("gateway", {}).items():
        if name not in known:
            raise SettingsError(f"{path}: unknown setting `{name}` in [gateway]; known are {', '.join(sorted(known))}")
        values[name] = _typed(name, value, hints[name], path)
    for table, field_name in _TABLES.items():
        if table in document:
            if not isinstance(document[table], dict):
                raise SettingsError(f"{path}: [{table}] must be a table")
            values[field_name] = document[table]
    if "groups" in document:
        values["groups"] = _groups(document["groups"], path)
    return values


def _groups(tables: Any, path: Path) -> tuple[ModelGroup, ...]:
    """Return the model groups of every fleet. Raises SettingsError in the words of the file."""
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise SettingsError(f"{path}: [groups] must be tables such as [groups.fast]")
    try:
        for name, table in tables.items():
            if "name" in table:  # in the fleet file it stands there
                raise SettingsError(f"{path}: [groups.{name}] name: the table is named already. Remove it.")
        groups = tuple(group_from_table(name, table) for name, table in tables.items())
        check_groups(groups)
    except DeclarationError as error:
        where = error.field.removeprefix("models")
        name, _, rest = where.removeprefix("[").partition("]")
        place = f"[groups.{name}]{rest.replace('.', ' ', 1)}" if where.startswith("[") else "[groups]"
        raise SettingsError(f"{path}: {place}: {error.problem} (got {error.value!r}). {error.remedy}") from None
    return groups


def _typed(name: str, value: Any, hint: Any, path: Path) -> Any:
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        wanted = " or ".join(repr(option) for option in get_args(hint))
    elif get_origin(hint) is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        wanted = "a list of strings"
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        wanted = "a number of seconds"
    elif isinstance(value, hint) and not isinstance(value, bool):
        return value
    else:
        wanted = {int: "a whole number", str: "a text"}.get(hint, str(hint))
    shown = "something else" if name in PASSWORD_OF else repr(value)  # it may hold a password
    raise SettingsError(f"{path}: `{name}` in [gateway] is {shown}; it must be {wanted}")
