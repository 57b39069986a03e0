"""What every test shares: no skip in CI that is not listed here, and no property test that fails for being slow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings
from services import postgres_server, postgres_url, redis_server, redis_url  # noqa: F401 - fixtures for every test

# A busy machine is not a failure; how long a test may take is pytest-timeout's to say.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture
def whole_log() -> Iterator[None]:
    """Let every line of the gateway's log through, whatever a gateway in this process has made of it before."""
    kept = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**kept)


# Regular expressions, searched in the reason of a skip: what may be skipped even there, each with why.
ALLOWED_SKIPS: tuple[str, ...] = ()


def is_allowed(reason: str, allowed: tuple[str, ...] = ALLOWED_SKIPS) -> bool:
    """Return whether a test may be skipped for this reason on a continuous integration machine."""
    return any(re.search(pattern, reason) for pattern in allowed)


class _SkipPolicy:
    """Collects the skips of a session and fails it for those that nobody allowed.

    With pytest-xdist it acts in the main process alone, which receives the reports of all workers.
    """

    def __init__(self) -> None:
        self.unexpected: dict[str, str] = {}

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        detail = report.longrepr
        reason = detail[2] if isinstance(detail, tuple) else str(detail)
        reason = reason.removeprefix("Skipped: ")
        if not is_allowed(reason):
            self.unexpected[report.nodeid] = reason

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section("skipped against the rule (CI is set)", red=True)
            for nodeid, reason in sorted(self.unexpected.items()):
                terminalreporter.write_line(f"{nodeid}: {reason}")
            terminalreporter.write_line("Provide what is missing, or allow the reason in tests/conftest.py.")


def pytest_configure(config: pytest.Config) -> None:
    """Watch for skips when the environment says CI, in the process that sees every report."""
    if os.environ.get("CI") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_SkipPolicy(), "nemo-skip-policy")
