"""A gateway with the shapes provider behind it, shared by the tests; every test has a fleet and keys of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("clients_bench")  # what disagrees is then shown, as in a test

from clients_bench import SPEAKERS, ClientsBench, clients_bench, gateway_before  # noqa: E402 - rewritten first
from shapes_provider import ShapesProvider, run_shapes_provider  # noqa: E402 - likewise

from nemo_agents.testing import LocalGateway  # noqa: E402 - likewise


@pytest.fixture(scope="session")
def shapes() -> Iterator[ShapesProvider]:
    with run_shapes_provider() as provider:
        yield provider


@pytest.fixture(scope="session")
def shapes_gateway(tmp_path_factory: pytest.TempPathFactory, shapes: ShapesProvider) -> Iterator[LocalGateway]:
    with gateway_before(shapes, tmp_path_factory.mktemp("clients") / "home") as gateway:
        yield gateway


@pytest.fixture
def bench(shapes_gateway: LocalGateway, shapes: ShapesProvider) -> Iterator[ClientsBench]:
    """The shared gateway; when the test is over, the books, the provider's bill and the request log must agree."""
    with clients_bench(shapes_gateway, shapes) as ready:
        yield ready


@pytest.fixture(params=SPEAKERS)
def speaker(request: pytest.FixtureRequest) -> str:
    """The provider that speaks every wire itself, and the one that has to be translated for."""
    name: str = request.param
    return name
