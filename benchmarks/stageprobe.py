"""The gateway with a sampling profiler in it: `python stageprobe.py SNAPSHOT gateway …` is `nemo-agents gateway …`.

A timer on the processor time of the event loop's thread interrupts it, and the time since the interrupt before is put
to the stage of the function it was in. The kernel looks at such timers once a tick, so a second of processor time is
100 to 1000 samples; that costs nothing to speak of, and the product knows nothing of it. Other threads are not
interrupted: their processor time is read from the kernel. On SIGUSR1 all is written to SNAPSHOT as JSON, with a number
that counts up.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import signal
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

from stagemap import STAGES, stage_of_function

_INTERVAL_NS: Final = 1_000_000
_SIGEV_SIGNAL: Final = 0


class _Value(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Interval(ctypes.Structure):
    """`struct itimerspec` of timer_settime(2)."""

    _fields_ = (("interval", _Value), ("first", _Value))


class _SignalEvent(ctypes.Structure):
    """`struct sigevent` of sigevent(7); its union is 64 bytes in all."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    )


class Sampler:
    """Counts the processor time of the thread that it is made on, by stage."""

    def __init__(self, snapshot: Path) -> None:
        self._snapshot = snapshot
        self._number = 0
        self._stages = dict.fromkeys(STAGES, 0)
        self._known: dict[CodeType, str | None] = {}
        self._seen_ns = time.thread_time_ns()
        self._samples = 0
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()

    def start(self) -> None:
        """Begin. Raises OSError when the kernel gives no timer."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.signal(signal.SIGUSR1, self._write)
        clock = time.pthread_getcpuclockid(threading.get_ident())
        event = _SignalEvent(None, signal.SIGPROF, _SIGEV_SIGNAL, b"")
        self._check(self._libc.timer_create(ctypes.c_int(clock), ctypes.byref(event), ctypes.byref(self._timer)))
        every = _Value(0, _INTERVAL_NS)
        self._check(self._libc.timer_settime(self._timer, 0, ctypes.byref(_Interval(every, every)), None))
        atexit.register(self._stop)

    def _stop(self) -> None:
        self._libc.timer_delete(self._timer)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)

    def _check(self, status: int) -> None:
        if status:
            raise OSError(ctypes.get_errno(), "the kernel gives no timer on a thread's processor time")

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        now_ns = time.thread_time_ns()
        self._stages[self._stage(frame)] += now_ns - self._seen_ns
        self._samples += 1
        self._seen_ns = now_ns

    def _stage(self, frame: FrameType | None) -> str:
        while frame is not None:
            code = frame.f_code
            if code not in self._known:
                self._known[code] = stage_of_function(frame.f_globals.get("__name__", ""), code.co_name)
            if (stage := self._known[code]) is not None:
                return stage
            frame = frame.f_back
        return STAGES[-1]

    def _write(self, _number: int, _frame: FrameType | None) -> None:
        self._number += 1
        threads: dict[str, int] = {}
        for thread in threading.enumerate():  # those that live: of others the kernel must not be asked
            if thread is not threading.main_thread() and thread.ident is not None:
                used_ns = time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))
                threads[thread.name] = threads.get(thread.name, 0) + used_ns
        document = {
            "number": self._number,
            "samples": self._samples,
            "process_ns": time.process_time_ns(),
            "loop_ns": time.thread_time_ns(),
            "stages": self._stages,
            "threads": threads,
        }
        fresh = self._snapshot.with_suffix(".new")
        fresh.write_text(json.dumps(document), encoding="utf-8")
        fresh.replace(self._snapshot)


def main(argv: list[str]) -> None:
    """Start the profiler and then the gateway's own command."""
    snapshot, *arguments = argv
    Sampler(Path(snapshot)).start()
    from nemo_agents.cli import main as cli  # noqa: PLC0415 - what it imports is none of the program's affair before that

    sys.argv = ["nemo-agents", *arguments]
    cli()


if __name__ == "__main__":
    main(sys.argv[1:])
