"""Static files: read once from the package, served from memory under names that carry their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Final

__all__ = ["Asset", "Assets", "load_assets"]

_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One file."""

    body: bytes
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assets:
    """The files by the name they are served under, and that name by the file's own."""

    files: Mapping[str, Asset]
    names: Mapping[str, str]


def load_assets() -> Assets:
    """Read the package's static files."""
    files: dict[str, Asset] = {}
    names: dict[str, str] = {}
    for entry in sorted((resources.files(__package__) / "static").iterdir(), key=lambda entry: entry.name):
        stem, _, suffix = entry.name.rpartition(".")
        if suffix in _TYPES:
            body = entry.read_bytes()
            name = f"{stem}.{hashlib.sha256(body).hexdigest()[:16]}.{suffix}"
            files[name] = Asset(body=body, media_type=_TYPES[suffix])
            names[entry.name] = name
    return Assets(files=MappingProxyType(files), names=MappingProxyType(names))
