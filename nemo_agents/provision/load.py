"""Read a fleet from a file: `fleet.py`, which is run, or `fleet.toml`, which is only read."""

from __future__ import annotations

import sys
import tomllib
import traceback
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_agents.errors import DeclarationError
from nemo_agents.groups import ModelGroup, group_from_table
from nemo_agents.roles import AgentRole, FleetDeclaration, Guardrail
from nemo_agents.rules import Budget, Loop, RateLimit, did_you_mean

__all__ = ["load_fleet"]

_MODULE = "__nemo_fleet_file__"
_TABLES = ("fleet", "models", "roles")
_FLEET_KEYS = ("name", "budget", "rpm", "tpm", "max_parallel", "shadow", "guardrails")
_ROLE_KEYS = (
    "name",
    "models",
    "rpm",
    "tpm",
    "max_parallel",
    "shadow",
    "model_limits",
    "budget",
    "loop",
    "price_per_request",
    "cache",
    "guardrails",
    "tools",
    "description",
)
_AS_WRITTEN = ("models", "tools", "price_per_request", "cache", "description")
_BUDGET_KEYS = ("amount", "period", "tz", "alert_at", "mode")
_LIMIT_KEYS = ("rpm", "tpm", "max_parallel", "mode")
_LOOP_KEYS = ("repeats", "within_s", "mode")
_GUARDRAIL_KEYS = ("name", "mode")
# What other gateways call a budget or a rate that warns and never refuses.
_SOFT = ("soft_budget", "soft", "soft_limit")
_SOFT_REMEDY = 'Write mode = "shadow" in the budget or limit: budget = { amount = "$5/day", mode = "shadow" }.'


def load_fleet(path: Path) -> FleetDeclaration:
    """Return the one fleet that a `.py` or `.toml` file declares.

    A `.py` file is executed with its folder importable, so it can do anything that its author could.
    Raises DeclarationError, with the file's name, when there is no such file, when it cannot be read or run,
    or when it does not declare exactly one fleet.
    """
    readers = {".py": _from_python, ".toml": _from_toml}
    try:
        reader = readers.get(path.suffix)
        if reader is None:
            raise _problem("is not a fleet file", path.suffix, "A fleet file ends in .py or .toml.")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise _problem(f"cannot be read: {reason}", path.name, "Give the path of a fleet file.") from None
        return reader(path, text)
    except DeclarationError as error:
        raise error.in_file(str(path)) from None


def _problem(problem: str, value: object, remedy: str, *, field: str = "file") -> DeclarationError:
    return DeclarationError(problem, field=field, value=value, remedy=remedy)


# --- fleet.py -----------------------------------------------------------------------------------------------
def _from_python(path: Path, text: str) -> FleetDeclaration:
    names = _run(path, text)
    fleets: dict[int, tuple[str, FleetDeclaration]] = {}
    for name, value in names.items():
        if isinstance(value, FleetDeclaration):
            fleets.setdefault(id(value), (name, value))
    if len(fleets) == 1:
        return next(iter(fleets.values()))[1]
    if not fleets:
        raise _problem(
            "declares no fleet",
            path.name,
            'Assign one at the top level: fleet = Fleet("my-crew", roles=[...]).',
        )
    found = ", ".join(name for name, _ in fleets.values())
    raise _problem(
        f"declares {len(fleets)} fleets", found, "Keep one fleet per file; put the others in their own files."
    )


def _run(path: Path, text: str) -> dict[str, Any]:
    module = types.ModuleType(_MODULE)
    module.__file__ = str(path)
    try:
        code = compile(text, str(path), "exec", dont_inherit=True)
        with _importable(path.resolve().parent, module):
            exec(code, module.__dict__)  # noqa: S102 - running the user's own fleet file is the feature
    except SyntaxError as error:
        line = (error.text or "").strip()
        remedy = "Correct the line and try again."
        raise _problem(f"is not valid Python: {error.msg}", line, remedy, field=_line(path, error)) from None
    except DeclarationError as error:
        field = f"{_line(path, error)}: {error.field}"
        raise DeclarationError(error.problem, field=field, value=error.value, remedy=error.remedy) from None
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}"
        remedy = "A fleet file must run to its end without an exception."
        raise _problem("raised an exception", what, remedy, field=_line(path, error)) from error
    return module.__dict__


@contextmanager
def _importable(folder: Path, module: types.ModuleType) -> Iterator[None]:
    """Make the folder importable, and the module findable by those who look themselves up, while it runs."""
    sys.path.insert(0, str(folder))
    sys.modules[_MODULE] = module
    try:
        yield
    finally:
        sys.modules.pop(_MODULE, None)
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _line(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"line {lines[-1]}" if lines else "file"


# --- fleet.toml ---------------------------------------------------------------------------------------------
def _from_toml(path: Path, text: str) -> FleetDeclaration:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _problem(f"is not valid TOML: {error}", path.name, "Correct the line and try again.") from None
    _known(document, _TABLES, "")
    fleet = _table(document.get("fleet"), "fleet")
    _known(fleet, _FLEET_KEYS, "fleet.")
    _required(fleet, ("name",), "fleet")
    return FleetDeclaration(
        fleet["name"],
        roles=[_role(table, n) for n, table in enumerate(_tables(document, "roles"))],
        models=[_group(table, n) for n, table in enumerate(_tables(document, "models"))],
        **_common(fleet, "fleet"),
    )


def _role(table: Mapping[str, Any], n: int) -> AgentRole:
    at = f"roles[{table.get('name', n)}]"
    _known(table, _ROLE_KEYS, f"{at}.")
    _required(table, ("name", "models"), at)
    direct = {key: table[key] for key in _AS_WRITTEN if key in table}
    if "model_limits" in table:
        direct["model_limits"] = _model_limits(table["model_limits"], at)
    if "loop" in table:
        direct["loop"] = _loop(table["loop"], at)
    return AgentRole(table["name"], **direct, **_common(table, at))


def _group(table: Mapping[str, Any], n: int) -> ModelGroup:
    _required(table, ("name",), f"models[{n}]")
    return group_from_table(table["name"], table)


def _common(table: Mapping[str, Any], at: str) -> dict[str, Any]:
    """Return what a fleet and a role say in the same words."""
    found = {key: table[key] for key in ("rpm", "tpm", "max_parallel", "shadow") if key in table}
    if "budget" in table:
        value = table["budget"]
        several = isinstance(value, list)
        found["budget"] = (
            [_budget(item, f"{at}.budget[{n}]") for n, item in enumerate(value)]
            if several
            else _budget(value, f"{at}.budget")
        )
    if "guardrails" in table:
        value = table["guardrails"]
        found["guardrails"] = [_guardrail(item, at) for item in value] if isinstance(value, list) else value
    return found


def _budget(value: Any, at: str) -> Any:
    if not isinstance(value, dict):
        return value
    _known(value, _BUDGET_KEYS, f"{at}.")
    _required(value, ("amount",), at)
    with _at(at, "budget"):
        return Budget(**value)


def _model_limits(value: Any, at: str) -> Any:
    """Return the limits of each model; a table within, such as `{rpm = 10}`, is one RateLimit."""
    if not isinstance(value, dict):
        return value
    found = {}
    for model, limit in value.items():
        field = f"{at}.model_limits[{model}]"
        if not isinstance(limit, dict):
            raise _problem("is not a table", limit, "Write a table: {rpm = 10}.", field=field)
        _known(limit, _LIMIT_KEYS, f"{field}.")
        with _at(field, ""):
            found[model] = RateLimit(**limit)
    return found


def _loop(value: Any, at: str) -> Any:
    if not isinstance(value, dict):
        return value
    _known(value, _LOOP_KEYS, f"{at}.loop.")
    with _at(f"{at}.loop", "loop"):
        return Loop(**value)


@contextmanager
def _at(at: str, own: str) -> Iterator[None]:
    """Name the place of an error: `at` in the stead of what the value calls itself, `own`."""
    try:
        yield
    except DeclarationError as error:
        rest = error.field.removeprefix(own) if own else f".{error.field}"
        raise _problem(error.problem, error.value, error.remedy, field=f"{at}{rest}") from None


def _guardrail(value: Any, at: str) -> Any:
    if not isinstance(value, dict):
        return value
    _known(value, _GUARDRAIL_KEYS, f"{at}.guardrails.")
    _required(value, ("name",), f"{at}.guardrails")
    try:
        return Guardrail(**value)
    except DeclarationError as error:
        raise _problem(error.problem, error.value, error.remedy, field=f"{at}.{error.field}") from None


def _table(value: Any, field: str) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    raise _problem("is missing or not a table", value, f"Write a table: [{field}].", field=field)


def _tables(document: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    value = document.get(field, [])
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    raise _problem("is not a list of tables", value, f"Write each as [[{field}]].", field=field)


def _known(table: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in table:
        if key not in known:
            soft = known is not _GUARDRAIL_KEYS and (key in _SOFT or (key == "shadow" and "mode" in known))
            remedy = _SOFT_REMEDY if soft else did_you_mean(key, known, "Known are")
            raise _problem("is not a known key", key, remedy, field=f"{prefix}{key}")


def _required(table: Mapping[str, Any], keys: tuple[str, ...], at: str) -> None:
    for key in keys:
        if key not in table:
            raise _problem("is missing", None, f"Add {key} = ... to it.", field=f"{at}.{key}")
