"""The ledger machine driven by dice: twenty times as many runs in the same time as Hypothesis makes of them.

Hypothesis finds the shortest way to a failure, and spends a third of a millisecond a step on being able to. Dice find
out whether there is one. A seed is a run: the same steps every time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from backends import Backend
from ledger_machine import CRASHES_MAX, LedgerMachine

STEPS = 80


def machine_on(backend: Backend) -> type[LedgerMachine]:
    return type(f"LedgerMachineOn{backend.name.title()}", (LedgerMachine,), {"backend": backend})


class Dice:
    """One run. `told` is what it did, in words that can be typed again."""

    def __init__(self, backend: Backend, seed: int) -> None:
        self.machine: Any = machine_on(backend)()
        self.random = random.Random(seed)
        self.may_crash = seed % backend.crashes_in == 0
        self.told: list[str] = []

    def play(self) -> None:
        self._do("begin", role=self._to(300), month=self._limit(), fleet=self._limit(), run=self._limit())
        moves = self._moves()
        # Each run has a taste of its own: what it does often, what it never does.
        weights = [weight * self.random.choice((0, 1, 1, 1, 4)) for weight, _, _ in moves]
        weights[0] = max(weights[0], 4)
        try:
            for index in self.random.choices(range(len(moves)), weights, k=STEPS):
                _, may, move = moves[index]
                if may():
                    move()
        finally:
            self.machine.teardown()

    def _moves(self) -> list[tuple[float, Callable[[], Any], Callable[[], None]]]:
        machine, do, dice = self.machine, self._do, self.random

        def always() -> bool:
            return True

        def is_open() -> bool:
            return bool(machine.model.ledger.open)

        def any_hold() -> bool:
            return bool(machine.model.ledger.holds)

        def may_crash() -> bool:
            return self.may_crash and machine.crashes < CRASHES_MAX

        def again() -> None:
            do(
                "say_again_or_late",
                which=self._which(),
                kind=dice.choice(("post", "void", "expire")),
                cost=self._cost(),
            )

        def limit() -> None:
            name, mode = (
                dice.choice(("day", "month", "fleet")),
                dice.choice(("enforce", "enforce", "enforce", "shadow")),
            )
            do("a_limit_changes", name=name, limit=self._limit(), mode=mode)

        return [
            (12, always, lambda: do("hold", amount=self._to(120), grouped=dice.random() < 0.5)),
            (2, always, lambda: do("two_hold_at_once", amounts=(self._to(120), self._to(120)))),
            (8, is_open, lambda: do("post", which=self._which(), cost=self._cost())),
            (2, is_open, lambda: do("never_sent", which=self._which())),
            (4, any_hold, again),
            (3, is_open, lambda: do("fall_back", which=self._which(), amount=self._to(120), sent=dice.random() < 0.5)),
            (1, always, lambda: do("time_passes", by=1 + self._to(1499))),
            (2, always, limit),
            (1, always, lambda: do("the_day_ends")),
            (0.5, any_hold, lambda: do("the_key_is_rotated", client=self._to(1))),
            (0.4, may_crash, lambda: do("crash", which=self._which(), cost=self._cost())),
        ]

    def _do(self, rule: str, /, **arguments: Any) -> None:
        self.told.append(f"state.{rule}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
        getattr(self.machine, rule)(**arguments)

    def _to(self, most: int) -> int:
        return self.random.randrange(most + 1)

    def _which(self) -> int:
        return self.random.randrange(1 << 16)

    def _cost(self) -> int:
        return self._to(150)

    def _limit(self) -> int | None:
        return None if self.random.random() < 0.3 else self._to(400)


def play(backend: Backend, seed: int) -> None:
    """Run one seed; a failure says how to see it again."""
    dice = Dice(backend, seed)
    try:
        dice.play()
    except BaseException as error:
        error.add_note("\n".join(dice.told))
        error.add_note(f"seed={seed}: again with python tests/proof/replay.py ledger {seed} --backend {backend.name}")
        raise
