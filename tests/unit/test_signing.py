"""Credentials that change while the gateway runs, and the addresses to which none may go."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.upstream.addresses import refused_address
from nemo_agents.gateway.upstream.signing import (
    AwsSignature,
    FileKey,
    GoogleToken,
    SigningError,
    Token,
    aws_signature,
    google_token,
)
from nemo_agents.secret import Secret


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def shown(headers) -> dict[str, str]:
    return {name: value.reveal() for name, value in headers.items()}


# --- a key in a file ---------------------------------------------------------------------------------------------
def file_key(path: Path, clock: Clock) -> FileKey:
    return FileKey("here", path, Secret("first"), lambda wire, key: {f"x-{wire}": key}, now_s=clock)


def rewrite(path: Path, text: str) -> None:
    """Replace a file as tools do that must never leave half of one: its number changes, whatever the clock says."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


async def test_a_key_file_that_changes_gives_the_new_key(tmp_path):
    path, clock = tmp_path / "key", Clock()
    path.write_text("first")
    key = file_key(path, clock)
    assert shown(await key.sign("chat", "POST", "u", b"")) == {"x-chat": "first"}
    rewrite(path, "second\n")
    assert shown(await key.sign("chat", "POST", "u", b"")) == {
        "x-chat": "first"
    }  # it is not looked at for each request
    clock.now_s += 1
    assert shown(await key.sign("messages", "POST", "u", b"")) == {"x-messages": "second"}


@pytest.mark.parametrize("broken", ["", "two words", "k" * 20_000])
async def test_a_key_file_that_breaks_leaves_the_former_key(tmp_path, broken):
    path, clock = tmp_path / "key", Clock()
    path.write_text("first")
    key = file_key(path, clock)
    rewrite(path, broken)
    clock.now_s += 1
    assert shown(await key.sign("chat", "POST", "u", b"")) == {"x-chat": "first"}
    path.unlink()
    clock.now_s += 1
    assert shown(await key.sign("chat", "POST", "u", b"")) == {"x-chat": "first"}
    rewrite(path, "third")
    clock.now_s += 1
    assert shown(await key.sign("chat", "POST", "u", b"")) == {"x-chat": "third"}


# --- tokens ------------------------------------------------------------------------------------------------------
class Issuer:
    """Gives tokens that are good for an hour, and counts them; fails while it is told to."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.issued = 0
        self.broken = False
        self.threads: set[int] = set()

    def __call__(self) -> Token:
        self.threads.add(threading.get_ident())
        if self.broken:
            raise ConnectionError("no route to the token service")
        self.issued += 1
        return Token(text=Secret(f"token-{self.issued}"), expires_s=self.clock.now_s + 3_600)


async def bearer(token: GoogleToken) -> str:
    return shown(await token.sign("chat", "POST", "u", b""))["authorization"]


async def test_a_token_is_renewed_before_it_expires_once_and_in_a_thread():
    clock = Clock()
    issuer = Issuer(clock)
    token = GoogleToken(issuer, now_s=clock)
    assert await asyncio.gather(*(bearer(token) for _ in range(20))) == ["Bearer token-1"] * 20
    clock.now_s += 3_600 - 301
    assert await bearer(token) == "Bearer token-1"
    clock.now_s += 2
    assert await asyncio.gather(*(bearer(token) for _ in range(20))) == ["Bearer token-2"] * 20
    assert threading.get_ident() not in issuer.threads


async def test_a_token_that_cannot_be_renewed_is_used_while_it_is_good():
    clock = Clock()
    issuer = Issuer(clock)
    token = GoogleToken(issuer, now_s=clock)
    await bearer(token)
    issuer.broken = True
    clock.now_s += 3_599
    assert await bearer(token) == "Bearer token-1"
    clock.now_s += 1
    with pytest.raises(SigningError, match="no route to the token service"):
        await bearer(token)
    issuer.broken = False
    assert await bearer(token) == "Bearer token-2"


async def test_a_request_that_cannot_be_signed_says_why():
    def sign(method: str, url: str, body: bytes) -> dict[str, str]:
        raise RuntimeError(f"no credentials for {method} {url} of {len(body)}")

    with pytest.raises(SigningError, match=r"no credentials for POST u of 3"):
        await AwsSignature(sign).sign("chat", "POST", "u", b"abc")


@pytest.mark.parametrize(
    ("make", "extra"),
    [
        (lambda: aws_signature("bedrock", "eu-west-1"), "bedrock"),
        (lambda: google_token("vertex"), "vertex"),
    ],
)
def test_without_the_extra_it_is_said_how_to_install_it(monkeypatch, make, extra):
    for module in ("botocore", "botocore.auth", "google", "google.auth"):
        monkeypatch.setitem(__import__("sys").modules, module, None)  # as if it were not installed
    with pytest.raises(SettingsError, match=rf"nemo-agents\[{extra}\]"):
        make()


# --- addresses ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "100.100.100.200",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
    ],
)
def test_addresses_that_tell_secrets_are_refused_in_every_form(address):
    assert refused_address(address)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "10.0.0.7", "192.168.1.2", "172.16.0.1", "fd12:3456::1", "8.8.8.8", "::ffff:10.0.0.7", "host"],
)
def test_addresses_at_which_models_run_are_not(address):
    assert refused_address(address) is None
