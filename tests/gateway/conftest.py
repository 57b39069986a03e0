"""A gateway with a faulty provider behind it, shared by the tests; every test has fleets and keys of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faulty_provider import FaultyProvider, run_faulty_provider
from gateway_bench import Bench, bench_for, gateway_at

from nemo_agents.testing import LocalGateway


@pytest.fixture(scope="session")
def shared_provider() -> Iterator[FaultyProvider]:
    with run_faulty_provider("--many=2000") as provider:
        yield provider


@pytest.fixture(scope="session")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory, shared_provider: FaultyProvider) -> Iterator[LocalGateway]:
    with gateway_at(tmp_path_factory.mktemp("gateway") / "home", shared_provider) as gateway:
        yield gateway


@pytest.fixture
def bench(shared_gateway: LocalGateway, shared_provider: FaultyProvider) -> Iterator[Bench]:
    """The shared gateway, with fleets of the test's own; the books are checked when the test is over."""
    with bench_for(shared_gateway, shared_provider) as ready:
        yield ready
