"""Which AutoGen is installed, and whether it is one that this adapter speaks to.

Four distributions answer to the name. `autogen-agentchat` and `autogen-ext` are AutoGen 0.7 (`autogen_agentchat`);
`autogen` from 0.14.1 and `pyautogen` 0.2 are the classic `import autogen`; `ag2` from 1.0 is `import ag2`, and older
releases of it own `import autogen` too. An installer never warns when two owners of one package overwrite each other,
and when one is removed the other is left without files. Both are found here and said.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Final

from nemo_agents.adapters import AdapterError, check_versions

__all__ = ["FRAMEWORK", "Owner", "check_ag2", "check_agentchat", "check_classic", "classic_of"]

FRAMEWORK: Final[Mapping[str, str]] = MappingProxyType(
    {
        "autogen-agentchat": ">=0.7.1,<0.8",
        "autogen-ext": ">=0.7.1,<0.8",
        "autogen": ">=0.14.1,<1",
        "pyautogen": ">=0.2.30,<0.3",
        "ag2": ">=1.0.3,<2",
    }
)
"""Distributions and the ranges of them that this adapter is tested with. Each shape needs only its own."""

_CLASSIC: Final = ("autogen", "pyautogen")
_EVER_OWNED_AUTOGEN: Final = ("autogen", "pyautogen", "ag2", "autogen-agentchat")
_MODULE: Final = "autogen/__init__.py"
_INSTALL: Final = "pip install 'autogen[openai]>=0.14.1,<1'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """An installed distribution that has ever shipped the package `autogen`.

    `owns` says whether its list of files names the package, `present` whether the file is there.
    """

    name: str
    version: str
    owns: bool
    present: bool

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def check_agentchat() -> None:
    """Raise AdapterError unless autogen-agentchat and autogen-ext are installed in their range."""
    _check("autogen-agentchat", "autogen-ext")


def check_ag2() -> None:
    """Raise AdapterError unless ag2 is installed in its range."""
    _check("ag2")


def check_classic() -> None:
    """Raise AdapterError unless exactly one distribution owns `import autogen`, whole, and is in its range."""
    _check(_installed_classic())


def classic_of(found: Sequence[Owner]) -> str:
    """Return the distribution that gives `import autogen`.

    Raises AdapterError where none does, where two do, and where the one that does has lost its files.
    """
    owners = [one for one in found if one.owns]
    if not owners:
        others = ", ".join(map(str, found))
        seen = f" ({others} does not contain it)" if others else ""
        raise AdapterError(f"no installed distribution has the package `autogen`{seen}. Run: {_INSTALL}")
    if len(owners) > 1:
        names = " and ".join(map(str, owners))
        remove = " ".join(one.name for one in owners)
        raise AdapterError(
            f"{names} both own the package `autogen` and have overwritten each other's files. "
            f"Run: pip uninstall -y {remove}, then: {_INSTALL}"
        )
    owner = owners[0]
    if not owner.present:
        raise AdapterError(
            f"{owner} owns the package `autogen`, but its files are gone: another owner was installed over it and then "
            f"removed. Run: pip uninstall -y {owner.name}, then: {_INSTALL}"
        )
    if owner.name not in _CLASSIC:
        raise AdapterError(
            f"`import autogen` is {owner} here, which this adapter does not speak to. "
            f"Run: pip uninstall -y {owner.name}, then: {_INSTALL}"
        )
    return owner.name


def _check(*names: str) -> None:
    check_versions("autogen", {name: FRAMEWORK[name] for name in names})


@functools.cache
def _installed_classic() -> str:
    return classic_of([owner for name in _EVER_OWNED_AUTOGEN if (owner := _found(name)) is not None])


def _found(name: str) -> Owner | None:
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    files = distribution.files or []
    module = next((file for file in files if file.as_posix() == _MODULE), None)
    return Owner(
        name=name,
        version=distribution.version,
        owns=module is not None,
        present=module is not None and Path(str(distribution.locate_file(module))).is_file(),
    )
