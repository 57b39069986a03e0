"""The test's side of `replica_client.py`: a job goes out, outcomes come back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replica_client import Outcome

CLIENT = Path(__file__).with_name("replica_client.py")


@dataclass(frozen=True, kw_only=True)
class Load:
    """Callers that are at work."""

    process: subprocess.Popen[str]

    def _tell(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def _hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the callers ended with {self.process.wait(10)}"
        return json.loads(line)

    def answered(self, *, at_least: int = 0) -> int:
        """Wait until so many calls were answered with 200 since the beginning; return how many were."""
        self._tell({"do": "progress", "answered": at_least})
        count: int = self._hear()["answered"]
        return count

    def ended(self) -> int:
        """Return how many calls have ended, however they did."""
        self._tell({"do": "progress", "answered": 0})
        count: int = self._hear()["outcomes"]
        return count

    def use_key(self, name: str, secret: str) -> None:
        """Let every call after this one that is made with this key use another secret."""
        self._tell({"do": "key", "name": name, "secret": secret})
        self._hear()

    def stop(self) -> list[Outcome]:
        """Let every caller end its call, and return all outcomes."""
        self._tell({"do": "stop"})
        self._hear()
        return self.outcomes()

    def outcomes(self) -> list[Outcome]:
        """Wait until the callers are through and return all outcomes in the order of their ends."""
        return [Outcome(**each) for each in self._hear()]


@contextmanager
def load_of(targets: Sequence[str], keys: dict[str, str], callers: Sequence[dict[str, Any]]) -> Iterator[Load]:
    """Run these callers in a process of their own."""
    with subprocess.Popen(
        [sys.executable, str(CLIENT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            load = Load(process=process)
            load._tell({"targets": list(targets), "keys": keys, "callers": list(callers)})
            yield load
        finally:
            process.kill()


def run_load(targets: Sequence[str], keys: dict[str, str], callers: Sequence[dict[str, Any]]) -> list[Outcome]:
    """Run callers that end by themselves, and return the outcomes."""
    with load_of(targets, keys, callers) as load:
        return load.outcomes()
