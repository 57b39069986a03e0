"""Find dead links in the documentation: relative targets that do not exist, and anchors that no heading has.

Looks at every Markdown file, without a network: addresses of other sites are not followed. Absolute paths
and paths out of the repository are refused, since they work in one place only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = frozenset({"node_modules", "dist", "build"})

FENCE = re.compile(r"^ {0,3}(?P<mark>`{3,}|~{3,})")
CODE_SPAN = re.compile(r"(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
INLINE = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?(?P<target>[^\s)>]*)>?(?:\s+[\"'(][^)]*)?\)")
REFERENCE = re.compile(r"^ {0,3}\[(?!\^)[^\]]+\]:\s*<?(?P<target>\S+?)>?(?:\s|$)")
ATTRIBUTE = re.compile(r"<[a-z]+\b[^>]*?\s(?:href|src|srcset)=[\"'](?P<target>[^\"']*)[\"']", re.IGNORECASE)
ANCHOR = re.compile(r"<[a-z]+\b[^>]*?\s(?:id|name)=[\"'](?P<id>[^\"']+)[\"']", re.IGNORECASE)
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(?P<text>.*?)(?:\s+#+)?\s*$")
UNDERLINE = re.compile(r"^ {0,3}(?:=+|-{2,})\s*$")
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


def documents(root: Path) -> Iterator[Path]:
    """Yield the Markdown files below a folder, leaving out hidden folders and what is built."""
    for path in sorted(root.rglob("*.md")):
        folders = path.relative_to(root).parts[:-1]
        if not any(part in SKIPPED or part.startswith(".") for part in folders):
            yield path


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines outside fenced code and comments."""
    text = COMMENT.sub(lambda found: "\n" * found[0].count("\n"), text)
    fence = ""
    for number, line in enumerate(text.splitlines(), start=1):
        mark = FENCE.match(line)
        if fence:
            if mark and mark["mark"].startswith(fence) and not line.strip(" `~"):
                fence = ""
        elif mark:
            fence = mark["mark"]
        else:
            yield number, line


def slug(heading: str) -> str:
    """Return the anchor of a heading as GitHub makes it: lower case, no punctuation, hyphens for spaces."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link counts by its words
    text = re.sub(r"<[^>]+>", "", text)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return every anchor of a Markdown file; a repeated heading gets a number."""
    found: set[str] = set()
    before = ""
    for _, line in prose(path.read_text(encoding="utf-8")):
        found.update(match["id"] for match in ANCHOR.finditer(line))
        heading = HEADING.match(line)
        text = heading["text"] if heading else before if before.strip() and UNDERLINE.match(line) else None
        if text is not None:
            name, count = slug(text), 0
            while (name if not count else f"{name}-{count}") in found:
                count += 1
            found.add(name if not count else f"{name}-{count}")
        before = line
    return frozenset(found)


def targets(text: str) -> Iterator[tuple[int, str]]:
    """Yield every link target with its line."""
    for number, line in prose(text):
        bare = CODE_SPAN.sub("", line)
        for pattern in (INLINE, REFERENCE, ATTRIBUTE):
            yield from ((number, match["target"]) for match in pattern.finditer(bare))


def fault(document: Path, target: str, root: Path) -> str | None:
    """Return what is wrong with one link, or None."""
    if ELSEWHERE.match(target):
        return None
    name, _, anchor = unquote(target).partition("#")
    if name.startswith("/"):
        return "an absolute path works in one place only"
    path = (document.parent / name).resolve() if name else document
    if not path.is_relative_to(root):
        return "leads out of the repository"
    if not path.exists():
        return "no such file"
    if anchor and path.suffix == ".md" and anchor not in anchors(path):
        return f"no heading of {path.relative_to(root)} has this anchor"
    return None


def main(root: Path) -> int:
    """Print each dead link and return the exit status."""
    dead = 0
    for document in documents(root):
        for number, target in targets(document.read_text(encoding="utf-8")):
            if reason := fault(document, target, root):
                print(f"{document.relative_to(root)}:{number}: {target!r}: {reason}")
                dead += 1
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT))
