"""What the tests of the command line share: real processes, a pseudo-terminal, and a transcript of all they printed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEMO = (sys.executable, "-m", "nemo_agents")
FULL_KEY = re.compile(r"sk-nemo-[a-z2-7]{10}-[0-9A-Za-z]{38}|sk-nemo-admin-[\w-]{20,}")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]")
TIMEOUT_S = 60

FLEET = """
[fleet]
name = "crew"
budget = "$170/day"
[[models]]
name = "fast"
models = ["openai/o3-mini"]
[[roles]]
name = "writer"
models = ["fast", "gpt-4o-mini"]
rpm = 30
budget = "$20/day"
guardrails = ["pii-filter"]
[[roles]]
name = "critic"
models = ["gpt-4o-mini"]
tpm = "100k"
budget = "$10/day"
"""
EVIL = "\x1b[2J\x1b]0;owned\x07\u202egpj.exe\u2066\x9b31m\nOK: 0 calls\tforged"

TRANSCRIPT: list[str] = []
"""Everything that any process printed, but for the one command whose purpose is to print secrets."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def error(self) -> str:
        """The one line of a failure; there is nothing else on standard error, and no traceback."""
        assert self.code == 1, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0]


@dataclass(frozen=True, kw_only=True)
class Shell:
    """An environment to run commands in: this gateway, this home, and nothing of the machine's own."""

    folder: Path
    env: Mapping[str, str]

    def given(self, **variables: str) -> Shell:
        return Shell(folder=self.folder, env={**self.env, **variables})

    def run(self, *args: str | Path, stdin: str | None = None, secret: bool = False) -> Result:
        """Run `nemo-agents`, its output in a pipe. `secret`: it prints keys, keep them out of the transcript."""
        done = subprocess.run(
            [*NEMO, *map(str, args)],
            env=self.env,
            cwd=self.folder,
            input=stdin or "",
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
            check=False,
        )
        if not secret:
            TRANSCRIPT.extend((done.stdout, done.stderr))
        return Result(code=done.returncode, out=done.stdout, err=done.stderr)

    def start(self, *args: str | Path) -> subprocess.Popen[str]:
        """Start `nemo-agents` and leave it to the caller."""
        return subprocess.Popen(
            [*NEMO, *map(str, args)],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def in_terminal(self, *args: str | Path, columns: int = 100, typed: str = "") -> Result:
        """Run `nemo-agents` on a pseudo-terminal of that width; `out` has everything, with colour codes."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        with subprocess.Popen(
            [*NEMO, *map(str, args)],
            env={**self.env, "TERM": "xterm-256color"},
            cwd=self.folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            os.write(ours, typed.encode())
            pieces = []
            with contextlib.suppress(OSError):  # Linux says EIO where the other end was closed
                while piece := os.read(ours, 65_536):
                    pieces.append(piece)
            os.close(ours)
            code = process.wait(TIMEOUT_S)
        out = b"".join(pieces).decode().replace("\r\n", "\n")
        TRANSCRIPT.append(out)
        return Result(code=code, out=out, err="")


def make_shell(folder: Path, **variables: str) -> Shell:
    home = folder / "user"
    home.mkdir(exist_ok=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", **variables}
    return Shell(folder=folder, env=env)


def read_until(process: subprocess.Popen[str], marker: str) -> str:
    """Read standard output up to and with the line that has the marker in it."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if marker in line:
            return read
    assert process.stderr is not None
    raise AssertionError(f"{marker!r} was never printed, but:\n{read}\n{process.stderr.read()}")


def finish(process: subprocess.Popen[str], number: signal.Signals | None = None) -> Result:
    """Send the signal, wait for the end, and return the rest of what was printed."""
    if number is not None:
        process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    TRANSCRIPT.extend((out, err))
    return Result(code=process.returncode, out=out, err=err)


@contextlib.contextmanager
def gateway_process(shell: Shell, home: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `nemo-agents gateway --port 0` and give the process and its address; it is stopped at the end."""
    process = shell.start("gateway", "--port", "0", "--home", home, *flags)
    try:
        banner = read_until(process, "next ")
        TRANSCRIPT.append(banner)
        yield process, banner.split("listening on ", 1)[1].split()[0]
    finally:
        if process.poll() is None:
            finish(process, signal.SIGINT)


def plain(text: str) -> str:
    """Return text without colours."""
    return ANSI.sub("", text)
