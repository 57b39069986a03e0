"""`nemo-agents doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import site
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from nemo_agents.cli.connect import address, admin_client, gateway_options, home_folder
from nemo_agents.cli.output import console, one_line, print_json, print_wrapped
from nemo_agents.errors import AdminError, ExitCode, NemoError

if TYPE_CHECKING:
    from nemo_agents.admin.wire import LogSize
    from nemo_agents.client import Client

__all__ = ["doctor"]

_PARTS = {
    "openai": "openai",
    "gateway": "uvicorn starlette sqlalchemy alembic genai-prices httptools jinja2 structlog",
}
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_INDENT = 6
# What setuptools installs beside itself, to the letter.
_SETUPTOOLS_LINE = (
    "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == 'local'; "
    "enabled and __import__('_distutils_hack').add_shim();"
)
_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """One thing that was looked at. `remedy` says what to do about a warning or failure."""

    level: Literal["ok", "warn", "fail"]
    what: str
    remedy: str = ""


@click.command()
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(gateway_url: str | None, home: Path | None, *, as_json: bool) -> int:
    """Check this machine's set-up and say what to mend; exits 1 when something cannot work."""
    url = address(gateway_url)
    findings = [*_python(), *_packages(), *_folder(home_folder(home)), *_gateway(url, home), *_startup_files()]
    if as_json:
        print_json([{"level": f.level, "what": f.what, "remedy": f.remedy} for f in findings])
    else:
        _print_findings(findings)
    return ExitCode.FAILURE if any(finding.level == "fail" for finding in findings) else ExitCode.OK


def _print_findings(findings: list[_Finding]) -> None:
    from rich.text import Text

    to = console()
    for finding in findings:
        to.print(Text(f"{finding.level:4}  ", style=_COLOURS[finding.level]), end="")
        print_wrapped(to, one_line(finding.what), first=_INDENT, indent=_INDENT)
        if finding.remedy:
            print_wrapped(to, f"{'':{_INDENT}}→ {one_line(finding.remedy)}", indent=_INDENT + 2)


def _python() -> Iterator[_Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield _Finding(level="ok", what=f"Python {version}, nemo-agents {importlib.metadata.version('nemo-agents')}")


def _packages() -> Iterator[_Finding]:
    for extra, names in _PARTS.items():
        missing = [name for name in names.split() if not _installed(name)]
        if missing:
            yield _Finding(
                level="warn",
                what=f"extra [{extra}] is incomplete: {', '.join(missing)}",
                remedy=f"pip install 'nemo-agents[{extra}]'",
            )
        else:
            yield _Finding(level="ok", what=f"extra [{extra}] is installed")
    from nemo_agents.gateway.providers.known import COMPROMISED_LITELLM

    litellm = _installed("litellm")
    if litellm and litellm.startswith(COMPROMISED_LITELLM):
        yield _Finding(
            level="fail",
            what=f"litellm {litellm} is a release that was compromised",
            remedy="uninstall it, and rotate every credential this machine can read",
        )


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _folder(home: Path) -> Iterator[_Finding]:
    if not home.exists():
        yield _Finding(level="ok", what=f"{home} does not exist yet; the gateway's first start makes it")
        return
    if not os.access(home, os.W_OK | os.X_OK):
        yield _Finding(level="fail", what=f"{home} cannot be written", remedy="mend its owner, or set NEMO_HOME")
        return
    private = True
    for path in (home, *(home / name for name in ("admin.key", "pepper", "viewer.token", "keys.json", "gateway.db"))):
        if path.exists() and path.stat().st_mode & _FOR_OTHERS:
            private = False
            mode = "700" if path.is_dir() else "600"
            yield _Finding(level="fail", what=f"{path} is open to others", remedy=f"chmod {mode} {path}")
    if private:
        yield _Finding(level="ok", what=f"{home} is private and writable")


def _gateway(url: str, home: Path | None) -> Iterator[_Finding]:
    from nemo_agents.admin import models, observe, retention

    try:
        with admin_client(url, home) as client:
            yield from _readiness(client, url)
            info = client.run(observe.info())
            providers = client.run(models.check())
            problems = client.run(observe.verify()).get("problems", [])
            size = client.run(retention.log_size())
    except AdminError as error:
        yield _Finding(level="fail", what=f"the gateway at {url} refuses: {error}")
        return
    except NemoError as error:
        yield _Finding(level="warn", what=str(error))
        return
    yield _Finding(level="ok", what=f"gateway {info['version']} at {url}; providers: {', '.join(info['providers'])}")
    yield _Finding(level="ok", what=_log(size))
    for found in providers:
        yield _Finding(level=found.level, what=f"provider {found.provider}: {found.what}", remedy=found.remedy)
    if info.get("stand_in"):
        yield _Finding(
            level="warn",
            what=f"{info['stand_in']} answers for every model without a provider",
            remedy="set a provider's key (OPENAI_API_KEY, …) where the gateway runs",
        )
    for problem in problems:
        yield _Finding(
            level="fail", what=f"ledger: {problem}", remedy="stop the gateway and keep a copy of its database"
        )
    if not problems:
        yield _Finding(level="ok", what="every balance in the ledger adds up")


def _log(size: LogSize) -> str:
    free = f", {size.free_bytes / 1e6:,.1f} MB of it free" if size.free_bytes else ""
    kept = [f"{n} days" if n else "for ever" for n in (size.keep_runs_days, size.keep_content_days)]
    return f"the log takes {size.bytes / 1e6:,.1f} MB{free}; runs are kept {kept[0]}, what was said {kept[1]}"


def _readiness(client: Client, url: str) -> Iterator[_Finding]:
    """Ask whether calls can be served now. Raises GatewayUnreachable when nothing answers."""
    from nemo_agents.admin.calls import Call, ignored

    try:
        client.run(Call(method="GET", path="/health/ready", decode=ignored))
    except AdminError as error:
        yield _Finding(
            level="fail",
            what=f"the gateway at {url} cannot serve now: {error}",
            remedy="look whether its PostgreSQL or Redis runs and can be reached, and into its log",
        )
        return
    yield _Finding(level="ok", what="store and limiter are ready")


def _startup_files() -> Iterator[_Finding]:
    """Look for `.pth` files that run code at every start of Python: how a compromised package hid itself in 2026."""
    for folder in {*site.getsitepackages(), site.getusersitepackages()}:
        for path in sorted(Path(folder).glob("*.pth")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            if any(line.startswith(("import ", "import\t")) and line.strip() != _SETUPTOOLS_LINE for line in lines):
                yield _Finding(
                    level="warn", what=f"{path.name} runs code at every start of Python", remedy=f"read {path}"
                )
