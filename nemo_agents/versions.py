"""Versions of Python packages, as far as ranges such as `>=1.0,<2` need it; pure.

A subset of PEP 440 (https://peps.python.org/pep-0440/): releases of any length, `a`, `b`, `rc`, `dev` and `post`; no
epochs, no `~=`, no wildcards. A pre-release is below its release, and local labels (`+cu12`) do not count.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["fits", "parts_of"]

_VERSION: Final = re.compile(
    r"v?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>a|alpha|b|beta|rc|c)[-_.]?(?P<pre_n>\d*))?"
    r"(?:[-_.]?(?P<post>post)[-_.]?(?P<post_n>\d*))?"
    r"(?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_n>\d*))?"
    r"(?:\+.*)?"
)
_PRE: Final = {"a": 1, "alpha": 1, "b": 2, "beta": 2, "c": 3, "rc": 3}
_RELEASE: Final = 4  # above every pre-release, below post
_CLAUSE: Final = re.compile(r"(>=|<=|==|!=|>|<)\s*(\S+)")

Parts = tuple[tuple[int, ...], tuple[int, int], tuple[int, int], tuple[int, int]]


def parts_of(version: str) -> Parts:
    """Return what a version is compared by. Raises ValueError for a text that is none of the subset."""
    match = _VERSION.fullmatch(version.strip().lower())
    if match is None:
        raise ValueError(f"{version!r} is not a version")
    release = [int(number) for number in match["release"].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    only_dev = match["dev"] is not None and match["pre"] is None and match["post"] is None
    pre = (_PRE[match["pre"]], int(match["pre_n"] or 0)) if match["pre"] else (0 if only_dev else _RELEASE, 0)
    post = (1, int(match["post_n"] or 0)) if match["post"] else (0, 0)
    dev = (0, int(match["dev_n"] or 0)) if match["dev"] else (1, 0)
    return tuple(release), pre, post, dev


def fits(version: str, wanted: str) -> bool:
    """Say whether a version is in a range such as `>=1.0,<2`; a pre-release of an upper end (`2rc1`) is not.

    Raises ValueError for a version or range that is not of the subset.
    """
    found = parts_of(version)
    return all(_holds(found, clause.strip()) for clause in wanted.split(",") if clause.strip())


def _holds(found: Parts, clause: str) -> bool:
    match = _CLAUSE.fullmatch(clause)
    if match is None:
        raise ValueError(f"{clause!r} is not part of a range: write for example >=1.0,<2")
    operator, end = match[1], parts_of(match[2])
    match operator:
        case ">=":
            return found >= end
        case "<=":
            return found <= end
        case "==":
            return found == end
        case "!=":
            return found != end
        case ">":
            return found > end
        case _:
            return found < end and found[0] != end[0]
