"""Hold the lock files to their promises, without a network.

They name exact versions with hashes, no place to fetch them from, and nothing that is refused; the runtime
set is part of the development set at the same versions; and every requirement of pyproject.toml is met.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / ".ci" / "requirements.txt"
DEVELOPMENT = ROOT / ".ci" / "requirements-dev.txt"
EXTRAS = ROOT / ".ci" / "requirements-extras.txt"
LANES = sorted((ROOT / ".ci").glob("requirements-lane-*.txt"))
INSTALLER = ROOT / ".ci" / "requirements-uv.txt"

# A place does not belong into a lock: whoever installs it chooses the index.
FOLDERS = tuple(f"/{name}/" for name in ("home", "root", "tmp"))
PLACES = ("://", "file:", "index-url", "find-links", "trusted-host", " @ ", *FOLDERS)
# LiteLLM is an extra and a framework's way out, tested in environments of their own.
REFUSED = frozenset({"litellm"})

PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\]+?))? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")


def faults(path: Path, refused: frozenset[str] = REFUSED) -> Iterator[str]:
    """Yield what is wrong with the lines of one lock."""
    hashes = 1
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path.relative_to(ROOT)}:{number}"
        for place in PLACES:
            if place in line:
                yield f"{where}: contains {place!r}; a lock names no place"
        if HASH.match(line):
            hashes += 1
        elif pin := PIN.match(line):
            if not hashes:
                yield f"{where}: the requirement before has no hash"
            hashes = 0
            if pin["name"] in refused:
                yield f"{where}: {pin['name']} must not be installed"
        elif line.strip() and not line.lstrip().startswith("#"):
            yield f"{where}: neither an exact version nor a hash: {line.strip()[:60]}"
    if not hashes:
        yield f"{path.relative_to(ROOT)}: the last requirement has no hash"


def pins(path: Path) -> dict[str, set[str]]:
    """Return the locked versions by name; markers can give a name several."""
    found: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if pin := PIN.match(line):
            found.setdefault(canonicalize_name(pin["name"]), set()).add(pin["version"])
    return found


def group(groups: Mapping[str, list[Any]], name: str) -> Iterator[str]:
    """Yield the requirements of a dependency group and of those it includes."""
    for entry in groups[name]:
        if isinstance(entry, str):
            yield entry
        else:
            yield from group(groups, entry["include-group"])


def extra(project: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the requirements of an extra; one that names the project itself stands for its extras."""
    for text in project["optional-dependencies"][name]:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) == project["name"]:
            for inner in requirement.extras:
                yield from extra(project, inner)
        else:
            yield text


def unmet(requirements: Iterable[str], locked: Mapping[str, set[str]], lock: Path) -> Iterator[str]:
    """Yield each requirement that no locked version meets."""
    for text in requirements:
        requirement = Requirement(text)
        versions = locked.get(canonicalize_name(requirement.name), set())
        if not any(requirement.specifier.contains(version, prereleases=True) for version in versions):
            have = ", ".join(sorted(versions)) or "nothing"
            yield f"pyproject.toml asks for {text!r}, {lock.relative_to(ROOT)} has {have}"


def main() -> int:
    """Print every fault and return the exit status."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, groups = pyproject["project"], pyproject["dependency-groups"]
    runtime, development, extras = pins(RUNTIME), pins(DEVELOPMENT), pins(EXTRAS)
    wanted = [*project["dependencies"], *extra(project, "gateway")]
    sources = sorted((ROOT / ".ci").glob("requirements-lane-*.in"))
    found = [
        *faults(RUNTIME),
        *faults(DEVELOPMENT),
        *faults(EXTRAS, refused=frozenset()),
        *(fault for lane in LANES for fault in faults(lane, refused=frozenset())),
        *(f"{path.name}: no lock beside it" for path in sources if path.with_suffix(".txt") not in LANES),
        *faults(INSTALLER),
        *(
            f"{name}: {', '.join(sorted(versions))} in {RUNTIME.name} is not what {DEVELOPMENT.name} has"
            for name, versions in sorted(runtime.items())
            if development.get(name) != versions
        ),
        *unmet([*wanted, *group(groups, "build")], runtime, RUNTIME),
        *unmet([*wanted, *group(groups, "dev")], development, DEVELOPMENT),
        *unmet([text for name in ("litellm", "bedrock", "vertex") for text in extra(project, name)], extras, EXTRAS),
    ]
    for fault in found:
        print(fault)
    if found:
        print("make lock resolves the dependencies anew")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
