"""Which shapes of AutoGen each lane has, in one place; `needs` skips a module in a lane that lacks its shape.

| lane        | AutoGen 0.7 (agentchat) | classic                | AG2 1.x                       |
|-------------|-------------------------|------------------------|-------------------------------|
| `openai2`   | 0.7.5                   | autogen 0.14.1         | 1.0.3, the last with openai 2 |
| `openai3`   | 0.7.5                   | none: openai 2 only    | 1.2.1                         |
| `oldest`    | 0.7.1                   | none                   | none                          |
| `pyautogen` | none                    | pyautogen 0.2          | none                          |
"""

from __future__ import annotations

import importlib
from importlib import metadata

import pytest

DISTRIBUTIONS = {
    "agentchat": ("autogen-ext",),
    "classic": ("autogen", "pyautogen"),
    "ag2": ("ag2",),
}
MODULES = {"agentchat": "autogen_ext.models.openai", "classic": "autogen", "ag2": "ag2.config.openai"}


def distribution_of(shape: str) -> str | None:
    """Return the installed distribution that gives this shape."""
    for name in DISTRIBUTIONS[shape]:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return name
    return None


def needs(shape: str) -> None:
    """Skip the module where the shape is not installed, or is with an openai that it cannot use."""
    name = distribution_of(shape)
    if name is None:
        names = " and no ".join(DISTRIBUTIONS[shape])
        pytest.skip(f"this lane has no {shape}: there is no {names}", allow_module_level=True)
    try:
        importlib.import_module(MODULES[shape])
    except ImportError as exc:
        pytest.skip(f"this lane has no {shape}: {name} cannot use the openai of it ({exc})", allow_module_level=True)
