"""What a run has seen of its own calls, counted from whatever thread or task they are made in."""

from __future__ import annotations

import threading

from nemo_agents.admin.wire import StoppedBy
from nemo_agents.errors import GatewayError
from nemo_agents.trace.answers import is_stop, stopped_by
from nemo_agents.trace.context import Answer

__all__ = ["Tally"]


class Tally:
    """Sums over the answers seen, and the last refusal after which a run cannot go on.

    Streams do not say their cost in the header, so `cost_nanos` is a lower bound until the gateway's own sum is there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = 0
        self._refused_when_sent: int | None = None
        self.calls = 0
        self.cost_nanos = 0
        self.stopped_by: StoppedBy | None = None
        self._refusal: GatewayError | None = None

    @property
    def refusal(self) -> GatewayError | None:
        """The last stopping refusal, None when something that was asked after it has succeeded."""
        return self._refusal if self.stopped else None

    @property
    def stopped(self) -> bool:
        """Whether nothing that was asked after the last stopping refusal has succeeded."""
        return self._refused_when_sent is not None

    def send(self) -> int:
        """Count a request that is about to go out, and return its number."""
        with self._lock:
            self._sent += 1
            return self._sent

    def saw(self, answer: Answer, *, step: str | None) -> None:
        """Take note of an answer that came to a call of this step."""
        with self._lock:
            if not answer.in_stream:
                self.calls += 1
            self.cost_nanos += answer.cost_nanos or 0
            if answer.error is not None and is_stop(answer.error):
                self.stopped_by = stopped_by(answer.error, step=step)
                self._refused_when_sent = self._sent
                self._refusal = answer.error
            elif answer.error is None and answer.sent > (self._refused_when_sent or 0):
                # A call that was under way when another was refused says nothing about going on.
                self._refused_when_sent = None
