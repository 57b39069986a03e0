"""The key store in a file: secrets by gateway, fleet and role, readable by nobody else.

The file is JSON, 0600, in a 0700 folder. A change is written to a new file, flushed to the disk and renamed
over the old one, so that a reader sees one or the other and a crash loses neither.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from nemo_agents.errors import KeyStoreError
from nemo_agents.policy.keys import mask_key
from nemo_agents.provision.stored import StoredKey
from nemo_agents.secret import Secret

__all__ = ["KEYS_FILE", "FileKeyStore"]

KEYS_FILE: Final = "keys.json"

_VERSION: Final = 1


class _Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    gateway_url: str
    fleet: str
    role: str
    public_id: str
    secret: str
    state: Literal["pending", "active"]
    previous_id: str | None = None
    previous_secret: str | None = None
    grace: str | None = None

    @property
    def at(self) -> tuple[str, str, str]:
        return (_one_address(self.gateway_url), self.fleet, self.role)


class _Document(msgspec.Struct, kw_only=True):
    version: int = _VERSION
    keys: list[_Entry] = []


class FileKeyStore:
    """A KeyStore in one file, by default `keys.json` in the gateway's home.

    `localhost` and `127.0.0.1` are one address, and a slash at the end makes no other one.
    Every method raises KeyStoreError when the file or its folder is readable by others, is corrupt (it is
    left as it is) or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self, gateway_url: str, fleet: str) -> tuple[StoredKey, ...]:
        """Return the fleet's entries, by role name."""
        rows = [row for row in self._read().keys if row.at[:2] == (_one_address(gateway_url), fleet)]
        # Of two that were kept under two spellings, the one of this very spelling is meant.
        found = {row.role: row for row in sorted(rows, key=lambda row: row.gateway_url == gateway_url)}
        return tuple(_stored(found[role]) for role in sorted(found))

    def get(self, gateway_url: str, fleet: str, role: str) -> StoredKey | None:
        """Return one entry."""
        return next((entry for entry in self.entries(gateway_url, fleet) if entry.role == role), None)

    def addresses(self, fleet: str, role: str | None = None) -> tuple[str, ...]:
        """Return the gateways for which there is a key of this role, or of any role of the fleet."""
        rows = (row for row in self._read().keys if row.fleet == fleet and role in (None, row.role))
        return tuple(sorted({row.gateway_url for row in rows if _stored(row).usable_secret is not None}))

    def put(self, gateway_url: str, fleet: str, entry: StoredKey) -> None:
        """Insert or replace an entry; it is on the disk when this returns."""
        row = _row(gateway_url, fleet, entry)
        self._change(lambda rows: [*(other for other in rows if other.at != row.at), row])

    def forget(self, gateway_url: str, fleet: str, role: str) -> None:
        """Remove an entry, if there is one."""
        at = (_one_address(gateway_url), fleet, role)
        self._change(lambda rows: [row for row in rows if row.at != at])

    def secret(self, gateway_url: str, fleet: str, role: str) -> Secret | None:
        """Return the secret of a role that works now; None when there is none here."""
        entry = self.get(gateway_url, fleet, role)
        return None if entry is None else entry.usable_secret

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keep other processes from provisioning with this store meanwhile.

        Raises KeyStoreError at once when another does so now: waiting would act on an outdated plan.
        """
        with self._locked("provision.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield

    def _change(self, change: Callable[[list[_Entry]], list[_Entry]]) -> None:
        with self._locked("lock", fcntl.LOCK_EX):
            before = self._read()
            after = change(before.keys)
            if after != before.keys:
                self._write(_Document(keys=sorted(after, key=lambda row: row.at)))

    @contextmanager
    def _locked(self, suffix: str, how: int) -> Iterator[None]:
        # A file of its own: the data file is replaced by rename, which would leave a lock on the old one.
        self._make_folder()
        path = self.path.with_name(f"{self.path.name}.{suffix}")
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._failed("cannot be locked", error) from error
        try:
            fcntl.flock(handle, how)
        except BlockingIOError:
            os.close(handle)
            raise KeyStoreError(
                f"another nemo-agents provisions with {self.path} now; try again when it is done."
            ) from None
        try:
            yield
        finally:
            os.close(handle)

    def _make_folder(self) -> None:
        folder = self.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = folder.stat().st_mode
        except OSError as error:
            raise self._failed("has no folder", error) from error
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise KeyStoreError(f"others may write to {folder}, where keys are kept. Make it yours: chmod 700 {folder}")

    def _read(self) -> _Document:
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return _Document()
        except OSError as error:
            raise self._failed("cannot be read", error) from error
        try:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                raise KeyStoreError(f"the key store {self.path} is not a file. Move it away, or name another --home.")
            if mode & 0o077:
                raise KeyStoreError(
                    f"{self.path} holds keys and others may read it. Make it yours: chmod 600 {self.path}"
                )
            with os.fdopen(handle, "rb", closefd=False) as file:
                text = file.read()
        except OSError as error:
            raise self._failed("cannot be read", error) from error
        finally:
            os.close(handle)
        return self._decoded(text)

    def _decoded(self, text: bytes) -> _Document:
        try:
            document = msgspec.json.decode(text, type=_Document)
        except msgspec.DecodeError:
            # The cause is dropped on purpose: a decoder's message may quote what it stumbled over.
            raise KeyStoreError(
                f"{self.path} is not a file of keys, or is damaged; it was left as it is. "
                f"Restore it from a copy, or move it away and `nemo-agents rotate` each role."
            ) from None
        if document.version != _VERSION:
            raise KeyStoreError(
                f"{self.path} was written by another version of nemo-agents (format {document.version})."
            )
        return document

    def _write(self, document: _Document) -> None:
        text = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
        temporary = self.path.with_name(f".{self.path.name}.new")
        try:
            # Left over from a crash: created anew, so that its mode is ours whatever it was.
            temporary.unlink(missing_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise self._failed("cannot be written", error) from error

    def _failed(self, what: str, error: OSError) -> KeyStoreError:
        return KeyStoreError(f"the key store {self.path} {what}: {error.strerror}.")


def _one_address(gateway_url: str) -> str:
    """Return one spelling of an address that leads to the same gateway."""
    url = gateway_url.rstrip("/")
    try:
        parts = urlsplit(url)
        local = parts.hostname == "localhost"
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return url  # what is no address is compared as it is
    return f"{parts.scheme}://127.0.0.1{port}{parts.path}" if local else url


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _secret(text: str) -> Secret:
    return Secret(text, mask=mask_key(text))


def _stored(row: _Entry) -> StoredKey:
    return StoredKey(
        role=row.role,
        public_id=row.public_id,
        secret=_secret(row.secret),
        state=row.state,
        previous_id=row.previous_id,
        previous_secret=None if row.previous_secret is None else _secret(row.previous_secret),
        grace=row.grace,
    )


def _row(gateway_url: str, fleet: str, entry: StoredKey) -> _Entry:
    return _Entry(
        gateway_url=gateway_url,
        fleet=fleet,
        role=entry.role,
        public_id=entry.public_id,
        secret=entry.secret.reveal(),
        state=entry.state,
        previous_id=entry.previous_id,
        previous_secret=None if entry.previous_secret is None else entry.previous_secret.reveal(),
        grace=entry.grace,
    )
