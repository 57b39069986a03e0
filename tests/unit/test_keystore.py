"""The key store: what it keeps it keeps for nobody else, and a crash or a stranger's edit loses nothing."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from nemo_agents.errors import KeyStoreError
from nemo_agents.provision.keystore import FileKeyStore
from nemo_agents.provision.mint import mint_key
from nemo_agents.provision.stored import StoredKey

URL = "http://127.0.0.1:4141"


@pytest.fixture
def store(tmp_path):
    return FileKeyStore(tmp_path / "home" / "keys.json")


def entry(role="writer", **changes):
    minted = mint_key()
    return StoredKey(
        **{"role": role, "public_id": minted.public_id, "secret": minted.secret, "state": "active", **changes}
    )


def test_what_is_put_comes_back(store):
    old, new = mint_key(), mint_key()
    rotating = entry(
        "critic", state="pending", secret=new.secret, previous_id=old.public_id, previous_secret=old.secret, grace="1h"
    )
    writer = entry()
    store.put(URL, "crew", writer)
    store.put(URL, "crew", rotating)
    again = FileKeyStore(store.path)
    assert again.entries(URL, "crew") == (rotating, writer)
    assert again.get(URL, "crew", "writer") == writer
    assert again.secret(URL, "crew", "critic") == old.secret
    assert again.secret(URL, "crew", "writer") == writer.secret


def test_entries_of_other_fleets_and_gateways_are_apart(store):
    here, there, other = entry(), entry(), entry()
    store.put(URL, "crew", here)
    store.put("http://127.0.0.1:9999", "crew", there)
    store.put(URL, "crew-two", other)
    store.forget(URL, "crew", "writer")
    store.forget(URL, "crew", "writer")
    assert store.get(URL, "crew", "writer") is None
    assert store.get("http://127.0.0.1:9999", "crew", "writer") == there
    assert store.entries(URL, "crew-two") == (other,)


@pytest.mark.parametrize("spelling", ["http://localhost:4141", "http://localhost:4141/", "http://127.0.0.1:4141/"])
def test_spellings_of_one_address_have_one_entry(store, spelling):
    first, second = entry(), entry()
    store.put(URL, "crew", first)
    assert store.get(spelling, "crew", "writer") == first
    assert store.entries(spelling, "crew") == (first,)
    store.put(spelling, "crew", second)
    assert store.entries(URL, "crew") == (second,)
    assert store.get("http://localhost:4142", "crew", "writer") is None
    store.forget(URL, "crew", "writer")
    assert store.get(spelling, "crew", "writer") is None


def test_the_addresses_of_a_role_are_those_with_a_usable_key(store):
    store.put(URL, "crew", entry())
    store.put("https://gateway.example", "crew", entry())
    store.put("https://other.example", "crew", entry("critic"))
    store.put("https://third.example", "crew", entry(state="pending"))
    assert store.addresses("crew", "writer") == (URL, "https://gateway.example")
    assert store.addresses("crew") == (URL, "https://gateway.example", "https://other.example")
    assert store.addresses("crew", "nobody") == ()


def test_a_pending_secret_is_not_yet_one_to_use(store):
    store.put(URL, "crew", entry(state="pending"))
    assert store.secret(URL, "crew", "writer") is None
    assert store.secret(URL, "crew", "nobody") is None


def test_file_and_folder_are_ours_alone(store):
    old = os.umask(0)
    try:
        store.put(URL, "crew", entry())
    finally:
        os.umask(old)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert {path.name for path in store.path.parent.iterdir()} == {"keys.json", "keys.json.lock"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_is_refused(store, mode):
    store.put(URL, "crew", entry())
    before = store.path.read_bytes()
    store.path.chmod(mode)
    for use in (lambda: store.entries(URL, "crew"), lambda: store.put(URL, "crew", entry("critic"))):
        with pytest.raises(KeyStoreError, match=f"chmod 600 {store.path}"):
            use()
    assert store.path.read_bytes() == before


def test_a_folder_that_others_may_write_is_refused(store):
    store.path.parent.mkdir()
    store.path.parent.chmod(0o777)
    with pytest.raises(KeyStoreError, match="chmod 700"):
        store.put(URL, "crew", entry())
    assert not store.path.exists()


def test_a_folder_in_the_place_of_the_file_is_refused(store):
    store.path.mkdir(parents=True)
    for use in (lambda: store.entries(URL, "crew"), lambda: store.put(URL, "crew", entry())):
        with pytest.raises(KeyStoreError, match=f"the key store {store.path} is not a file"):
            use()
    assert store.path.is_dir()


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"\xff", b'{"keys": [{"secret": "sk-nemo-leak"}]}', b'{"version": 9, "keys": []}'],
)
def test_a_damaged_file_is_refused_and_left_as_it_is(store, text):
    store.put(URL, "crew", entry())
    store.path.write_bytes(text)
    for use in (lambda: store.get(URL, "crew", "writer"), lambda: store.put(URL, "crew", entry())):
        with pytest.raises(KeyStoreError) as caught:
            use()
        assert "sk-nemo-leak" not in str(caught.value)
    assert store.path.read_bytes() == text


def test_a_failed_write_leaves_the_old_file(store, monkeypatch):
    kept = entry()
    store.put(URL, "crew", kept)

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nemo_agents.provision.keystore.os.fsync", full)
    with pytest.raises(KeyStoreError, match="No space left"):
        store.put(URL, "crew", entry("critic"))
    monkeypatch.undo()
    assert store.entries(URL, "crew") == (kept,)
    assert not any(path.name.endswith(".new") for path in store.path.parent.iterdir())


def test_the_data_is_on_the_disk_before_it_is_in_place(store, monkeypatch):
    order = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(
        "nemo_agents.provision.keystore.os.fsync", lambda handle: (order.append("sync"), real_sync(handle))[1]
    )
    monkeypatch.setattr("pathlib.os.replace", lambda *names: (order.append("replace"), real_replace(*names))[1])
    store.put(URL, "crew", entry())
    assert order == ["sync", "replace", "sync"]


def test_changes_at_the_same_time_are_all_kept(store):
    roles = [f"role-{n}" for n in range(12)]
    threads = [threading.Thread(target=store.put, args=(URL, "crew", entry(role))) for role in roles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.role for one in store.entries(URL, "crew")} == set(roles)


def test_one_provisions_at_a_time(store):
    with store.exclusively():
        store.put(URL, "crew", entry())
        with pytest.raises(KeyStoreError, match="another nemo-agents"), FileKeyStore(store.path).exclusively():
            pass
    with store.exclusively():
        pass


def test_reading_a_store_that_is_not_there_makes_nothing(store):
    assert store.entries(URL, "crew") == ()
    assert not store.path.parent.exists()


def test_no_secret_is_in_a_repr(store):
    one = entry()
    store.put(URL, "crew", one)
    assert one.secret.reveal() not in repr(store.entries(URL, "crew"))
    assert one.secret.reveal() in store.path.read_text()
