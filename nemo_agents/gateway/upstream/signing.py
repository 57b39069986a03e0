"""Credentials that change: a key in a file, AWS signatures, tokens of Google. Each gives a request its headers.

The packages of the clouds are optional and large: they are imported when a provider is made that needs them. What they
do may ask the network, and does so in a thread.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.providers.fields import key_from_file
from nemo_agents.policy.wires.base import WireName
from nemo_agents.secret import Secret

__all__ = ["AwsSignature", "FileKey", "GoogleToken", "Signer", "SigningError", "Token", "aws_signature", "google_token"]

_GOOGLE_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
_BEDROCK_SERVICE: Final = "bedrock"  # the name in the credential scope, also for bedrock-runtime
_RENEW_BEFORE_S: Final = 300.0
_LOOK_EVERY_S: Final = 1.0
_log = structlog.get_logger("nemo_agents.gateway")


class SigningError(Exception):
    """There are no credentials for a request; the message says why, and holds none."""


class Signer(Protocol):
    """What gives a request the headers that show who pays for it."""

    async def sign(self, wire: WireName, method: str, url: str, body: bytes) -> Mapping[str, Secret]:
        """Return headers, names in lower case. Raises SigningError."""


class FileKey:
    """A key that is all of a file, read again when the file changes.

    While a changed file cannot be read, or holds no key, the former key stays: a half-written file must not end the
    service. `render` makes headers of a key, for a wire.
    """

    def __init__(
        self,
        where: str,
        path: Path,
        key: Secret,
        render: Callable[[WireName, Secret], Mapping[str, Secret]],
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._where = where
        self._path = path
        self._render = render
        self._now_s = now_s
        self._key = key
        self._seen = self._look()
        self._next_look_s = now_s() + _LOOK_EVERY_S

    async def sign(
        self,
        wire: WireName,
        method: str,  # noqa: ARG002 - the protocol's
        url: str,  # noqa: ARG002 - the protocol's
        body: bytes,  # noqa: ARG002 - the protocol's
    ) -> Mapping[str, Secret]:
        """Return the headers of the key that is in the file now."""
        if self._now_s() >= self._next_look_s:
            self._next_look_s = self._now_s() + _LOOK_EVERY_S
            seen = self._look()
            if seen is not None and seen != self._seen:
                self._read(seen)
        return self._render(wire, self._key)

    def _read(self, seen: tuple[int, int, int]) -> None:
        try:
            self._key = key_from_file(self._where, self._path)
        except SettingsError as error:
            _log.warning("the key file changed and cannot be used; the former key stays", error=str(error))
        else:
            _log.info("the key file changed; the new key is used", where=self._where)
        self._seen = seen

    def _look(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token, and until when it is good: seconds since the epoch."""

    text: Secret
    expires_s: float


class GoogleToken:
    """Tokens of Google, renewed five minutes before they expire; requests in that time share one renewal.

    `renew` blocks, and runs in a thread. While it fails, the former token is used as long as it is good.
    """

    def __init__(self, renew: Callable[[], Token], *, now_s: Callable[[], float] = time.time) -> None:
        self._renew = renew
        self._now_s = now_s
        self._token: Token | None = None
        self._renewing = asyncio.Lock()

    async def sign(
        self,
        wire: WireName,  # noqa: ARG002 - the protocol's
        method: str,  # noqa: ARG002 - the protocol's
        url: str,  # noqa: ARG002 - the protocol's
        body: bytes,  # noqa: ARG002 - the protocol's
    ) -> Mapping[str, Secret]:
        """Return the token as a header."""
        token = self._token
        if token is None or self._left_s(token) < _RENEW_BEFORE_S:
            token = await self._renewed()
        return {"authorization": Secret(f"Bearer {token.text.reveal()}", mask="Bearer …")}

    async def _renewed(self) -> Token:
        async with self._renewing:
            former = self._token
            if former is not None and self._left_s(former) >= _RENEW_BEFORE_S:
                return former  # somebody else has renewed it meanwhile
            try:
                self._token = await asyncio.to_thread(self._renew)
            except Exception as error:
                if former is None or self._left_s(former) <= 0:
                    raise SigningError(f"no token could be had ({type(error).__name__}: {error})") from error
                _log.warning("a token could not be renewed; the former is still good", error=type(error).__name__)
                return former
            return self._token

    def _left_s(self, token: Token) -> float:
        return token.expires_s - self._now_s()


class AwsSignature:
    """Signature Version 4 over each request, with credentials that may change by themselves.

    `sign_blocking` gets method, URL and body and returns headers; it may ask the network for credentials, and runs in a
    thread.
    """

    def __init__(self, sign_blocking: Callable[[str, str, bytes], Mapping[str, str]]) -> None:
        self._sign = sign_blocking

    async def sign(
        self,
        wire: WireName,  # noqa: ARG002 - the protocol's
        method: str,
        url: str,
        body: bytes,
    ) -> Mapping[str, Secret]:
        """Return the headers that sign this request."""
        try:
            headers = await asyncio.to_thread(self._sign, method, url, body)
        except Exception as error:
            raise SigningError(f"the request could not be signed ({type(error).__name__}: {error})") from error
        return {name.lower(): Secret(value) for name, value in headers.items()}


def aws_signature(name: str, region: str) -> AwsSignature:
    """Return what signs for Bedrock with the AWS credentials of this machine, as botocore finds them.

    Raises SettingsError when botocore is not installed, or finds none.
    """
    auth, awsrequest, session = (
        _optional(module, name, "bedrock") for module in ("botocore.auth", "botocore.awsrequest", "botocore.session")
    )
    credentials = session.get_session().get_credentials()
    if credentials is None:
        raise SettingsError(
            f"[providers.{name}] auth: no AWS credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            f"AWS_PROFILE, or AWS_BEARER_TOKEN_BEDROCK without auth."
        )

    def sign(method: str, url: str, body: bytes) -> Mapping[str, str]:
        request = awsrequest.AWSRequest(method=method, url=url, data=body, headers={"content-type": "application/json"})
        auth.SigV4Auth(credentials.get_frozen_credentials(), _BEDROCK_SERVICE, region).add_auth(request)
        return {key: value for key, value in request.headers.items() if key.lower() != "content-type"}

    return AwsSignature(sign)


def google_token(name: str) -> GoogleToken:
    """Return the tokens of this machine's Application Default Credentials.

    Raises SettingsError when google-auth is not installed, or finds no credentials.
    """
    google = _optional("google.auth", name, "vertex")
    transport = _optional("google.auth.transport.requests", name, "vertex")
    try:
        credentials, _ = google.default(scopes=[_GOOGLE_SCOPE])
    except google.exceptions.DefaultCredentialsError as error:
        raise SettingsError(
            f"[providers.{name}]: no Google credentials were found. Set GOOGLE_APPLICATION_CREDENTIALS to the file of "
            f"a service account, or run `gcloud auth application-default login`."
        ) from error

    def renew() -> Token:
        credentials.refresh(transport.Request())
        # google-auth gives UTC without saying so; without an expiry it is asked again for each request.
        expiry = credentials.expiry
        expires_s = 0.0 if expiry is None else expiry.replace(tzinfo=UTC).timestamp()
        return Token(text=Secret(credentials.token), expires_s=expires_s)

    return GoogleToken(renew)


def _optional(module: str, name: str, extra: str) -> Any:
    """Import what only an extra installs. Raises SettingsError saying how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(
            f"[providers.{name}]: {error.name or module} is missing. Run: pip install 'nemo-agents[{extra}]'"
        ) from error
