"""Virtual keys as text, and when a grant may be used."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.errors import Code
from nemo_agents.gateway.keyring import KeyRing
from nemo_agents.policy.keys import Grant, KeySecret, compose_key, hide_keys, mask_key, mint, parse_public_id, usable
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


@given(st.randoms(use_true_random=False))
def test_a_minted_key_is_well_formed(random):
    public_id, key = mint(random.choice)
    assert parse_public_id(key) == public_id


@given(public_ids, secrets, st.text("ab sk-:", max_size=20), st.sampled_from(" \n\"',.:()"))
def test_no_key_stays_in_a_text(public_id, secret, around, between):
    key = compose_key(public_id, secret)
    shown = hide_keys(f"{around}{between}{key}{between}sk-proj-{secret}{between}")
    assert secret not in shown
    assert mask_key(key) in shown
    assert hide_keys("ask me, sk-short") == "ask me, sk-short"


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


def test_a_secret_that_a_rotation_ended_is_not_said_to_have_expired():
    old = KeySecret(public_id="a" * 10, digest=b"x", created_us=0, expires_us=100)
    new = KeySecret(public_id="b" * 10, digest=b"y", created_us=90)
    grant = Grant(grant_id="g", alias="crew/writer", secrets=(old, new))
    assert usable(grant, old, now_us=99) is None
    refusal = usable(grant, old, now_us=100)
    assert refusal.code == Code.KEY_EXPIRED
    assert refusal.message.startswith("The key of crew/writer was replaced by a rotation. ")
    assert usable(grant, new, now_us=100) is None
    alone = usable(Grant(grant_id="g", alias="crew/writer", secrets=(old,)), old, now_us=100)
    assert "has expired" in alone.message


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
