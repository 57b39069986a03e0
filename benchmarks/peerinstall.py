"""Put the peers into `benchmarks/.peers`, each in a folder of its own and at exactly the versions of its lock.

Nothing of them enters the project's environment or its locks, and `make clean` removes them. Locks name versions and
hashes and no place: pip and npm fetch from wherever they are set up to. No script of a package is run by installing it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from machine import BenchmarkError

PLACE: Final = Path(__file__).with_name(".peers")
LOCKS: Final = Path(__file__).with_name("locks")
LITELLM_LOCK: Final = LOCKS / "litellm.txt"
PORTKEY_LOCKS: Final = (LOCKS / "portkey.package.json", LOCKS / "portkey.package-lock.json")
# 1.82.7 and 1.82.8 carried a thief of credentials, and nobody has vouched for 1.107.
REFUSED: Final = re.compile(r"1\.82\.[78]|1\.107(\..*)?")
_STAMP: Final = "installed-from"
_INSTALL_TIMEOUT_S: Final = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """An installed peer: its command, without arguments, and the versions of what counts."""

    command: tuple[str, ...]
    versions: dict[str, str]


def litellm(place: Path = PLACE) -> Installed:
    """Return LiteLLM's proxy, installed when it is not. Raises BenchmarkError with pip's last words."""
    pinned = pins(LITELLM_LOCK.read_text(encoding="utf-8"))
    if REFUSED.fullmatch(pinned["litellm"]):
        raise BenchmarkError(f"LiteLLM {pinned['litellm']} is one of the releases that are never installed")
    folder = place / "litellm"
    python = folder / "bin" / "python"
    if not _is_current(folder, (LITELLM_LOCK,)):
        _begin(folder)
        _run((sys.executable, "-m", "venv", str(folder)), "LiteLLM")
        pip = (str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq", "install", "--no-compile")
        _run((*pip, "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(LITELLM_LOCK)), "LiteLLM")
        _end(folder, (LITELLM_LOCK,))
    versions = {f"LiteLLM {name}" if name != "litellm" else "LiteLLM": pinned[name] for name in ("litellm", "uvicorn")}
    return Installed(command=(str(python), str(folder / "bin" / "litellm")), versions=versions)


def portkey(place: Path = PLACE) -> Installed:
    """Return Portkey's gateway, installed when it is not. Raises BenchmarkError with npm's last words."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise BenchmarkError("Portkey needs Node and npm; .ci/install-system peers installs them")
    folder = place / "portkey"
    if not _is_current(folder, PORTKEY_LOCKS):
        _begin(folder)
        for lock in PORTKEY_LOCKS:
            shutil.copy(lock, folder / lock.name.removeprefix("portkey."))
        _run((npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"), "Portkey", folder)
        _end(folder, PORTKEY_LOCKS)
    modules = folder / "node_modules"
    versions = {
        "Portkey": _version_of(modules / "@portkey-ai" / "gateway"),
        "Portkey @hono/node-server": _version_of(modules / "@hono" / "node-server"),
        "Node": _run((node, "--version"), "Portkey").strip().removeprefix("v"),
    }
    program = modules / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return Installed(command=(node, str(program)), versions=versions)


def pins(lock: str) -> dict[str, str]:
    """Return the versions of a lock by name."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[[a-z,]*\])?==([^\s;\\]+)", lock, re.MULTILINE))


def _version_of(package: Path) -> str:
    version: str = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
    return version


def _digest(locks: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()


def _is_current(folder: Path, locks: Sequence[Path]) -> bool:
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text(encoding="ascii") == _digest(locks)


def _begin(folder: Path) -> None:
    print(f"installing a peer into {folder} (once; a minute or two)", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _end(folder: Path, locks: Sequence[Path]) -> None:
    (folder / _STAMP).write_text(_digest(locks), encoding="ascii")


def _run(argv: Sequence[str], who: str, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError(f"{who} could not be installed: {error}") from error
    if done.returncode:
        last = " ".join((done.stderr or done.stdout).split())[-400:]
        raise BenchmarkError(f"{who} could not be installed: {Path(argv[0]).name} said: {last}")
    return done.stdout
