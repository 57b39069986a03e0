"""The real servers of the tests: alone on their port, and they can be killed, frozen and restarted."""

from __future__ import annotations

import psycopg
import pytest
import redis
from services import Service, redis_answers


def ask_redis(service: Service, timeout: float = 5.0) -> redis.Redis:
    return redis.Redis.from_url(service.url, socket_timeout=timeout, retry=None)


def test_redis_forgets_when_it_is_killed(redis_server, redis_url):
    with ask_redis(redis_server) as client:
        client.set("a", "1")
    first = redis_server.pid
    redis_server.kill()
    assert not redis_answers(redis_server.port)
    redis_server.restart()
    assert redis_server.pid != first
    with ask_redis(redis_server) as client:
        assert client.get("a") is None


def test_a_frozen_redis_answers_nothing_until_it_goes_on(redis_server, redis_url):
    redis_server.stop()
    with ask_redis(redis_server, timeout=0.2) as client:
        with pytest.raises(redis.TimeoutError):
            client.ping()
        redis_server.cont()
        assert client.ping()


def test_every_test_has_an_empty_redis(redis_server, redis_url):
    with ask_redis(redis_server) as client:
        assert client.dbsize() == 0


def test_postgres_keeps_what_it_acknowledged_when_it_is_killed(postgres_server, postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("CREATE TABLE kept (n int)")
        db.execute("INSERT INTO kept VALUES (1)")
        postgres_server.kill()
        with pytest.raises(psycopg.OperationalError):
            db.execute("SELECT 1")
    postgres_server.restart()
    with psycopg.connect(postgres_url) as db:
        assert db.execute("SELECT n FROM kept").fetchall() == [(1,)]


def test_a_frozen_postgres_answers_nothing_until_it_goes_on(postgres_server, postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as db:
        postgres_server.stop()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(postgres_url, connect_timeout=2).close()
        postgres_server.cont()
        assert db.execute("SELECT 2").fetchall() == [(2,)]


def test_every_test_has_a_fresh_database(postgres_url):
    with psycopg.connect(postgres_url) as db:
        assert db.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchall() == [(0,)]
