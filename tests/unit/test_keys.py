"""Virtual keys as text, and when a grant may be used."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.errors import Code
from nemo_agents.gateway.keyring import KeyRing
from nemo_agents.policy.keys import Grant, KeySecret, compose_key, mask_key, parse_public_id, usable
from nemo_agents.policy.refusal import Refusal
from nemo_agents.secret import Secret

BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
BASE62 = string.digits + string.ascii_letters
public_ids = st.text(BASE32, min_size=10, max_size=10)
secrets = st.text(BASE62, min_size=32, max_size=32)


@given(public_ids, secrets)
def test_a_key_tells_its_public_id_and_masks_its_secret(public_id, secret):
    key = compose_key(public_id, secret)
    assert parse_public_id(key) == public_id
    assert secret not in mask_key(key)
    assert public_id in mask_key(key)


@given(public_ids, secrets, st.integers(0, 10_000), st.sampled_from(BASE62))
def test_a_mistyped_key_is_recognised_without_a_look_up(public_id, secret, at, letter):
    key = compose_key(public_id, secret)
    position = len("sk-nemo-") + at % (len(key) - len("sk-nemo-"))
    typed = key[:position] + letter + key[position + 1 :]
    if typed != key:
        assert parse_public_id(typed) is None


@given(st.text(max_size=80))
def test_no_other_text_is_a_key(text):
    assert parse_public_id(text) is None
    assert mask_key(text) == "sk-…"


def grant_with(**changes):
    secret = KeySecret(public_id="a" * 10, digest=b"x", created_us=0, expires_us=changes.pop("secret_expires_us", None))
    return Grant(grant_id="g", alias="crew/writer", secrets=(secret,), **changes), secret


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"blocked": True}, Code.KEY_BLOCKED),
        ({"expires_us": 100}, Code.KEY_EXPIRED),
        ({"expires_us": 101}, None),
        ({"secret_expires_us": 100}, Code.KEY_EXPIRED),
        ({"revoked_us": 50}, Code.KEY_REVOKED),
        ({"revoked_us": 50, "blocked": True, "expires_us": 1}, Code.KEY_REVOKED),
    ],
)
def test_a_grant_may_be_used_until_it_expires_and_unless_it_is_blocked_or_revoked(changes, code):
    grant, secret = grant_with(**changes)
    refusal = usable(grant, secret, now_us=100)
    assert (refusal.code if refusal else None) == code


def test_the_ring_knows_a_key_by_its_digest_alone():
    ring = KeyRing(Secret("pepper"))
    key, other = compose_key("b" * 10, "x" * 32), compose_key("b" * 10, "y" * 32)
    secret = KeySecret(public_id="b" * 10, digest=ring.digest(key), created_us=0)
    ring.put(Grant(grant_id="g", alias="a", secrets=(secret,)))
    assert ring.authenticate(key, now_us=1) == (ring.find("g"), secret)
    for wrong in (other, None, "", "sk-nemo-garbage", compose_key("c" * 10, "x" * 32)):
        refused = ring.authenticate(wrong, now_us=1)
        assert isinstance(refused, Refusal)
        assert refused.code == Code.INVALID_API_KEY
    assert ring.find(other) is None
    assert KeyRing(Secret("other pepper")).digest(key) != ring.digest(key)


def test_a_replaced_grant_forgets_the_secrets_it_no_longer_has():
    ring = KeyRing(Secret("pepper"))
    old, new = (KeySecret(public_id=letter * 10, digest=b"d", created_us=0) for letter in "de")
    ring.put(Grant(grant_id="g", secrets=(old, new)))
    ring.put(Grant(grant_id="g", secrets=(new,)))
    assert ring.by_public_id("d" * 10) is None
    assert ring.by_public_id("e" * 10) is not None
