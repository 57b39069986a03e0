"""The secrets that the first start makes: admin key, pepper and viewer token, each a 0600 file in `NEMO_HOME`."""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from nemo_agents.errors import SettingsError
from nemo_agents.secret import Secret

__all__ = ["HomeSecrets", "open_home"]

_PRIVATE_DIR = 0o700
_PRIVATE_FILE = 0o600
_LENGTH_MIN = 16
_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeSecrets:
    """What only this gateway knows."""

    admin_key: Secret
    pepper: Secret
    viewer_token: Secret


def open_home(
    home: Path, *, admin_key: str | None = None, pepper: str | None = None, viewer_token: str | None = None
) -> HomeSecrets:
    """Make the folder (0700) and its secrets where they are missing, and read them.

    What is given (from NEMO_ADMIN_KEY, NEMO_PEPPER, NEMO_VIEWER_TOKEN: gateways that share a database need the same)
    replaces the generated one and is not written down. Raises SettingsError when the folder cannot be written, a
    secret can be read by others, or a given one is too short to be one.
    """
    try:
        home.mkdir(mode=_PRIVATE_DIR, parents=True, exist_ok=True)
        if home.stat().st_mode & _FOR_OTHERS:
            raise SettingsError(
                f"{home}: others may enter this folder, and the gateway keeps secrets in it. "
                f"Name a folder that does not exist yet, or make it yours: chmod 700 {home}"
            )
        if not pepper and (home / "gateway.db").exists() and not os.path.lexists(home / "pepper"):
            raise SettingsError(
                f"{home}/pepper is missing, and without it no key in {home}/gateway.db can be recognised. "
                "Restore it from a backup; or move gateway.db and keys.json away, and provision anew."
            )
        return HomeSecrets(
            admin_key=Secret(admin_key) if admin_key else _secret(home / "admin.key", "sk-nemo-admin-"),
            pepper=_given("NEMO_PEPPER", pepper) or _secret(home / "pepper", ""),
            viewer_token=_given("NEMO_VIEWER_TOKEN", viewer_token) or _secret(home / "viewer.token", ""),
        )
    except OSError as error:
        raise SettingsError(
            f"{home}: the gateway cannot write its data there ({error.strerror or error}). "
            "Choose another folder with --home or NEMO_HOME, or mend its permissions."
        ) from error


def _given(name: str, text: str | None) -> Secret | None:
    if not text:
        return None
    if len(text) < _LENGTH_MIN:
        raise SettingsError(f"{name} must be a random text of at least {_LENGTH_MIN} characters.")
    return Secret(text)


def _secret(path: Path, prefix: str) -> Secret:
    if os.path.lexists(path):
        return _read(path)
    text = prefix + secrets.token_urlsafe(32)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write(draft, text)
        # Whole or not at all, whenever the process dies; and never over the secret of another start at the same time.
        os.link(draft, path)
    except FileExistsError:
        return _read(path)
    finally:
        draft.unlink(missing_ok=True)
    return Secret(text)


def _write(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> Secret:
    if path.is_symlink() or path.stat().st_mode & _FOR_OTHERS:
        raise SettingsError(f"{path}: others can read this secret. Run: chmod 600 {path}")
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if len(text) < _LENGTH_MIN:
        raise SettingsError(f"{path}: is empty or cut short. Restore it, or remove it and provision anew.")
    return Secret(text)
