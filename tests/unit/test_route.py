"""The way of one request through deployments, and what a router learns from it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nemo_agents.errors import Code
from nemo_agents.gateway.prices import PriceBook
from nemo_agents.gateway.route import Candidates, Go, Router
from nemo_agents.policy.failover import Fault
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.routing import Deployment, Options, Target

S = 1_000_000
OVERLOADED = Fault(status=503)
CONTEXTS = {("openai", "small"): 8_000, ("openai", "large"): 100_000}


class Clock:
    def __init__(self):
        self.now = 1_000 * S

    def now_us(self):
        return self.now


def target(name, **fields) -> Target:
    return Target(provider="openai", model=name, deployment=f"crew/fast/{name}", **fields)


class World:
    """A router with a clock and dice of the test's own."""

    def __init__(self, *, chance=lambda: 0.5, attempts=4, retries=1, options=None):
        self.clock = Clock()
        self.targets: Any = (target("a"), target("b", order=1))
        self.options = options or Options()
        self.costs: dict[str, int] = {}
        deployment = Deployment(deployment_id="d", fleet="crew", group="fast", model="x", options=self.options)
        self.router = Router(
            resolve=lambda _asked, _fleet: self.targets,
            groups=lambda _fleet: {"fast": [deployment]},
            context_tokens=lambda provider, model: CONTEXTS.get((provider, model)),
            clock=self.clock,
            chance=chance,
            attempts=attempts,
            retries=retries,
        )

    def route(self, *targets, tokens_in=10, deadline_us=None, options=None):
        return self.router.route(
            targets or self.targets,
            options or self.options,
            tokens_in=tokens_in,
            cost_nanos=lambda one: self.costs.get(one.model),
            deadline_us=deadline_us,
        )

    def ask(self, *targets, fault=None, latency_us=None, **fields):
        """Make a request whose first attempt ends so; return where it went and what would follow."""
        route = self.route(*targets, **fields)
        go = route.start()
        route.sent(go.target)
        if fault is None:
            route.answered(go.target, latency_us=latency_us)
            return go.target.model, None
        return go.target.model, route.failed(go.target, fault)

    def state(self, name):
        return next(one for one in self.router.snapshot() if one.model == name)


@pytest.fixture
def world():
    return World()


# --- where to
def test_a_name_leads_to_targets_with_the_options_of_the_group():
    options = Options(strategy="weighted", retries=2)
    world = World(options=options)
    assert world.router.candidates("fast", "crew") == Candidates(targets=world.targets, options=options)
    assert world.router.candidates("gpt-4o", "crew") == Candidates(targets=world.targets, options=Options())
    world.targets = Refusal(status=404, code=Code.MODEL_NOT_FOUND, message="no", param="model")
    assert world.router.candidates("fast", "crew") is world.targets


def test_contexts_come_from_the_declaration_then_from_the_table(world):
    world.targets = (target("small"), target("large", context_tokens=50), target("other"))
    found = world.router.candidates("fast", "crew")
    assert [one.context_tokens for one in found.targets] == [8_000, 50, None]


def test_the_table_is_not_asked_for_a_model_that_is_alone(world):
    world.targets = (target("small"),)
    assert world.router.candidates("small", "crew").targets[0].context_tokens is None


def test_what_is_too_small_for_the_prompt_is_passed_over(world):
    small, large = target("small", context_tokens=8_000), target("large", context_tokens=100_000)
    assert world.ask(small, large, tokens_in=9_000)[0] == "large"
    assert world.ask(small, large, tokens_in=8_000)[0] == "small"


def test_cost_is_asked_for_where_it_counts_alone(world):
    world.costs = {"a": 9, "b": 3}
    a, b = target("a"), target("b")
    assert world.ask(a, b, options=Options(strategy="lowest-cost"))[0] == "b"
    route = world.router.route([a, b], Options(), tokens_in=1, cost_nanos=lambda _: pytest.fail("asked"))
    assert route.start().target == a


def test_the_least_busy_is_known_by_what_is_sent_and_not_ended(world):
    a, b = target("a"), target("b")
    options = Options(strategy="least-busy")
    first = world.route(a, b, options=options)
    first.sent(first.start().target)
    assert world.state("a").in_flight == 1
    second = world.route(a, b, options=options)
    go = second.start()
    assert go.target.model == "b"
    second.sent(go.target)
    first.left(a)
    assert world.ask(a, b, options=options)[0] == "a"
    second.answered(b)
    assert [one.in_flight for one in world.router.snapshot()] == [0, 0]


def test_the_fastest_is_known_by_its_answers(world):
    a, b = target("a"), target("b")
    options = Options(strategy="lowest-latency")
    assert world.ask(a, b, latency_us=900, options=options)[0] == "a"
    assert world.ask(a, b, latency_us=100, options=options)[0] == "b"
    assert world.ask(a, b, latency_us=100, options=options)[0] == "b"
    assert (world.state("a").latency_us, world.state("b").latency_us) == (900, 100)
    world.ask(a, fault=OVERLOADED)
    assert world.state("a").latency_us == 900  # an error is quick, and no answer


# --- what follows
def test_a_request_goes_on_until_it_is_answered(world):
    route = world.route()
    a, b = world.targets
    assert (route.start(), route.attempts, route.more) == (Go(target=a, reason="first"), 1, True)
    route.sent(a)
    assert route.failed(a, OVERLOADED) == Go(target=b, reason="fallback")
    assert (route.attempts, route.more) == (2, False)
    route.sent(b)
    route.answered(b, latency_us=5)
    assert (route.attempts, route.more) == (1, False)
    assert [(one.answers, one.faults) for one in world.router.snapshot()] == [(0, 1), (1, 0)]


def test_a_model_that_is_alone_is_asked_again_by_the_setting(world):
    route = world.route(target("a"))
    assert route.start().reason == "first"
    assert route.more
    assert route.failed(target("a"), OVERLOADED) == Go(target=target("a"), reason="retry", wait_ms=187)
    assert not route.more
    assert route.failed(target("a"), OVERLOADED) is None
    assert World(retries=0).ask(target("a"), fault=OVERLOADED) == ("a", None)


def test_a_group_of_several_asks_again_where_it_says_so_alone(world):
    a, b = world.targets
    assert world.ask(fault=OVERLOADED) == ("a", Go(target=b, reason="fallback"))
    again = world.ask(fault=OVERLOADED, options=Options(retries=1))
    assert again == ("a", Go(target=a, reason="retry", wait_ms=187))
    assert world.ask(target("c"), fault=OVERLOADED, options=Options(retries=0)) == ("c", None)


def test_refusals_fall_back_where_the_group_says_so(world):
    _, b = world.targets
    fault = Fault(status=400, kind="content_filter")
    assert world.ask(fault=fault) == ("a", None)
    options = Options(fallback_on=("content-filter",))
    assert world.ask(fault=fault, options=options) == ("a", Go(target=b, reason="fallback"))
    assert world.state("a").faults == 0


def test_the_deadline_counts_by_the_gateway_s_clock(world):
    deadline_us = world.clock.now + 187_000
    assert world.ask(target("a"), fault=OVERLOADED, deadline_us=deadline_us) == ("a", None)
    go = world.ask(target("a"), fault=OVERLOADED, deadline_us=deadline_us + 1)[1]
    assert go is not None
    assert go.wait_ms == 187


def test_attempts_are_bounded():
    world = World(attempts=2)
    route = world.route(*(target(name, order=n) for n, name in enumerate("abcd")))
    first = route.start()
    second = route.failed(first.target, OVERLOADED)
    assert not route.more
    assert route.failed(second.target, OVERLOADED) is None


def test_what_was_not_sent_says_nothing_of_the_deployment(world):
    _, b = world.targets
    for _ in range(9):
        route = world.route()
        assert route.failed(route.start().target, None) == Go(target=b, reason="fallback")
        route.left(b)
    assert (world.state("a").state, world.state("a").faults) == ("ready", 0)


def test_an_end_without_an_attempt_is_a_mistake_of_the_caller(world):
    a, b = world.targets
    route = world.route()
    with pytest.raises(RuntimeError, match="crew/fast/a"):
        route.answered(a)
    route.start()
    with pytest.raises(RuntimeError, match="crew/fast/b"):
        route.sent(b)
    route.left(a)
    with pytest.raises(RuntimeError):
        route.left(a)


# --- cooldown
def cool(world, *targets):
    for _ in range(5):
        world.ask(*targets, fault=OVERLOADED)


def test_what_is_cooling_down_goes_last_for_everybody(world):
    cool(world)
    assert world.state("a").state == "cooling"
    assert world.state("a").cooling_until_us == world.clock.now + 5 * S
    assert world.ask() == ("b", None)
    a, _ = world.targets
    assert world.ask(fault=OVERLOADED) == ("b", Go(target=a, reason="fallback"))


def test_one_that_is_alone_is_asked_all_the_same():
    world = World(retries=0)
    cool(world, target("a"))
    assert world.state("a").state == "cooling"
    assert world.ask(target("a")) == ("a", None)
    assert world.state("a").state == "ready"


def test_one_request_probes_and_the_others_stay_away(world):
    cool(world)
    world.clock.now += 5 * S
    probing = world.route()
    go = probing.start()
    assert go.target.model == "a"
    assert world.ask()[0] == "b"
    probing.sent(go.target)
    world.clock.now += 60 * S
    assert world.ask()[0] == "b"
    probing.answered(go.target)
    assert world.state("a").state == "ready"
    assert world.ask()[0] == "a"


def test_a_probe_that_fails_falls_back_and_doubles_the_cooldown(world):
    cool(world)
    world.clock.now += 5 * S
    _, b = world.targets
    assert world.ask(fault=OVERLOADED) == ("a", Go(target=b, reason="fallback"))
    assert world.state("a").cooling_until_us == world.clock.now + 10 * S


def test_an_answer_that_breaks_off_is_a_fault_and_keeps_nobody_from_a_probe(world):
    """Nobody is asked in its place, so that the turn to probe another deployment is still to be had."""
    a, b = target("a"), target("b")
    cool(world, b)
    world.clock.now += 6 * S  # b's cooldown is over: the next call that goes there is the probe
    route = world.route(a, b)
    route.sent(route.start().target)
    route.broke(a)
    assert (world.state("a").faults, world.state("a").faults_in_a_row, world.state("a").in_flight) == (1, 1, 0)
    assert world.router.cooling_until_us(b) is None
    assert world.ask(b, a) == ("b", None)


def test_a_probe_that_is_left_is_somebody_else_s_turn(world):
    cool(world)
    world.clock.now += 5 * S
    route = world.route()
    go = route.start()
    route.sent(go.target)
    route.left(go.target)
    assert world.ask()[0] == "a"


def test_what_began_to_cool_down_meanwhile_goes_last_in_requests_under_way(world):
    a, b, c = target("a"), target("b", order=1), target("c", order=2)
    route = world.route(a, b, c)
    go = route.start()
    cool(world, b)
    assert route.failed(go.target, OVERLOADED) == Go(target=c, reason="fallback")
    assert route.failed(c, OVERLOADED) == Go(target=b, reason="fallback")


def test_a_429_keeps_everybody_away_as_long_as_it_says(world):
    world.ask(fault=Fault(status=429, retry_after_ms=700))
    assert world.state("a").cooling_until_us == world.clock.now + 700_000
    assert world.ask()[0] == "b"
    world.clock.now += 700_000
    assert world.ask()[0] == "a"


def test_a_deployment_that_becomes_another_model_starts_anew(world):
    a = target("a")
    cool(world, a)
    other = Target(provider="gemini", model="z", deployment=a.deployment)
    assert world.ask(other) == ("z", None)
    (only,) = world.router.snapshot()
    assert (only.provider, only.model, only.state, only.answers) == ("gemini", "z", "ready", 1)


def test_names_of_clients_do_not_fill_the_memory(world):
    held = world.route(target("held"))
    held.sent(held.start().target)
    for n in range(5_000):
        world.ask(target(f"m{n}"))
    known = world.router.snapshot()
    assert len(known) == 4_096
    assert world.state("held").in_flight == 1
    assert {f"m{n}" for n in range(4_900, 5_000)} < {one.model for one in known}


def test_in_flight_comes_back_to_nothing_whatever_happens():
    """Many requests at once, of every outcome, in any order."""
    dice = random.Random(11)
    world = World(chance=dice.random, options=Options(strategy="weighted", retries=1))
    targets = [target(name, order=n // 2, weight=n + 1) for n, name in enumerate("abcd")]
    under_way = []
    for _ in range(3_000):
        world.clock.now += dice.randrange(400_000)
        if len(under_way) < 20 and dice.random() < 0.6:
            route = world.route(*targets)
            go = route.start()
            if dice.random() < 0.9:
                route.sent(go.target)
                under_way.append((route, go))
        elif under_way:
            route, go = under_way.pop(dice.randrange(len(under_way)))
            end = dice.random()
            if end < 0.4:
                route.answered(go.target, latency_us=dice.randrange(1_000))
            elif end < 0.5:
                route.left(go.target)
            else:
                fault = Fault(status=dice.choice([None, 400, 429, 503]), retry_after_ms=dice.choice([None, 900]))
                following = route.failed(go.target, fault)
                if following is not None:
                    route.sent(following.target)
                    under_way.append((route, following))
    assert sum(one.in_flight for one in world.router.snapshot()) == len(under_way)
    for route, go in under_way:
        route.left(go.target)
    assert {one.in_flight for one in world.router.snapshot()} == {0}
    assert all(one.answers and one.faults for one in world.router.snapshot())


def test_the_table_of_prices_knows_contexts():
    """By the names that the gateway uses; the sandbox takes what the model it stands for does."""
    book = PriceBook(priced_as={"corp": "openai"})
    known = book.context_tokens("openai", "o3-mini")
    assert known is not None
    assert known >= 100_000
    for provider, model in (("sandbox", "openai/o3-mini"), ("sandbox", "o3-mini"), ("corp", "o3-mini")):
        assert book.context_tokens(provider, model) == known
    for provider, model in (("sandbox", "sandbox/x"), ("sandbox", "no-such-model"), ("elsewhere", "o3-mini")):
        assert book.context_tokens(provider, model) is None
