"""Gateways in processes of their own before the faulty provider, watched for what they leave behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The bench of the gateway's tests is that of these, and the proofs' gateways in this process serve here as well.
sys.path += [str(Path(__file__).parents[1] / room) for room in ("gateway", "proof")]

from faults_gateway import FaultBench, WatchedGateway, fault_bench, watched_gateway
from faulty_provider import FaultyProvider, run_faulty_provider


@pytest.fixture(scope="module")
def provider() -> Iterator[FaultyProvider]:
    with run_faulty_provider("--tls") as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider: FaultyProvider) -> Iterator[WatchedGateway]:
    with watched_gateway(tmp_path_factory.mktemp("faults") / "home", provider) as running:
        yield running


@pytest.fixture
def bench(gateway: WatchedGateway, provider: FaultyProvider) -> Iterator[FaultBench]:
    """The gateway of the module, with a fleet of the test's own; the books are checked when the test is over."""
    with fault_bench(gateway, provider) as ready:
        yield ready


@pytest.fixture
def fresh(tmp_path: Path, provider: FaultyProvider) -> Iterator[FaultBench]:
    """A gateway of the test's own."""
    with watched_gateway(tmp_path / "home", provider) as gateway, fault_bench(gateway, provider) as ready:
        yield ready
