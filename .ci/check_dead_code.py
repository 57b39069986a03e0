"""Find functions, classes and imports that nothing uses: no test, no example, no page of the documentation.

Fields and variables are left out: values that cross a wire have many that only the encoder reads.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).resolve().parent.parent
# What is judged, and what else may use it.
JUDGED = ("nemo_agents", "benchmarks", ".ci", "docs/generate.py", "docs/matrix.py")
USERS = ("tests", "examples", "integrations")
KINDS = frozenset({"function", "method", "property", "class", "import", "unreachable_code"})

# Called by a framework under a name that it dictates, or through a decorator that registers.
DECORATORS = ["@*.command", "@*.group", "@*.route", "@*.register", "@pytest.fixture", "@*.exception_handler"]
# Names that somebody else looks up, each with who does.
NAMES: dict[str, str] = {
    "do_GET": "http.server",
    "do_POST": "http.server",
    "log_message": "http.server",
    "handle_error": "socketserver",
    "upgrade": "alembic",
    "downgrade": "alembic",
    "run_migrations_online": "alembic",
    "connection_made": "asyncio.Protocol",
    "connection_lost": "asyncio.Protocol",
    "data_received": "asyncio.Protocol",
    "eof_received": "asyncio.Protocol",
    "pause_writing": "asyncio.Protocol",
    "resume_writing": "asyncio.Protocol",
    "on_*": "httptools' parser callbacks",
    "get_command": "click.Group",
    "list_commands": "click.Group",
    "format_commands": "click.Group",
    "format_help": "click.Command",
    "resolve_command": "click.Group",
    "visit_*": "ast.NodeVisitor",
    "pytest_*": "pytest",
    "test_*": "pytest, also in the suite that others subclass",
    "__getattr__": "a module's attributes, PEP 562",
    "__dir__": "a module's attributes, PEP 562",
    "capture_signals": "uvicorn.Server",
}


def main() -> int:
    """Print what is unused and return the exit status."""
    vulture = Vulture(ignore_names=list(NAMES), ignore_decorators=DECORATORS)
    places = [str(ROOT / name) for name in (*JUDGED, *USERS) if (ROOT / name).exists()]
    vulture.scavenge(places, exclude=["*/.peers/*"])  # other people's programs, there to be measured
    words = (ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("nemo_agents/**/templates/*"))
    documents = "\n".join(path.read_text(encoding="utf-8") for path in words if path.exists())
    mentioned = set(re.findall(r"\w+", documents))
    unused = 0
    for item in vulture.get_unused_code(min_confidence=60):
        path = Path(item.filename).resolve().relative_to(ROOT)
        if item.typ not in KINDS or item.name in mentioned or not str(path).startswith(JUDGED):
            continue
        print(f"{path}:{item.first_lineno}: unused {item.typ} {item.name!r}")
        unused += 1
    if unused:
        print("remove it, or test it; a name that a framework looks up belongs into NAMES of this script")
    return 1 if unused else 0


if __name__ == "__main__":
    sys.exit(main())
