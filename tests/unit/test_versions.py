"""Versions and ranges of packages."""

from __future__ import annotations

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from nemo_agents.versions import fits, parts_of

ASCENDING = [
    "0.9",
    "1.0.dev1",
    "1.0a1",
    "1.0a2",
    "1.0b1",
    "1.0rc1",
    "1.0",
    "1.0.post1",
    "1.0.1",
    "1.2",
    "1.10",
    "2",
    "2.0.1",
]


def test_versions_are_ordered_as_the_standard_has_it():
    mixed = ASCENDING[::2] + ASCENDING[1::2]
    assert sorted(mixed, key=parts_of) == ASCENDING == sorted(mixed, key=Version)
    assert parts_of("1") == parts_of("1.0.0") == parts_of("v1.0+cu12")


@pytest.mark.parametrize(
    "wanted", [">=1.0,<2", ">=1.0.1", "<=1.0", "==1.0", "!=1.0", ">1.0.post1,<1.10", ">=0.7.1,<0.8", ""]
)
@pytest.mark.parametrize("version", ASCENDING)
def test_ranges_hold_what_the_standard_says(version, wanted):
    assert fits(version, wanted) is SpecifierSet(wanted).contains(version, prereleases=True)


@pytest.mark.parametrize("text", ["", "one", "1.x", "1.0-weird-1"])
def test_a_text_that_is_no_version_is_refused(text):
    with pytest.raises(ValueError, match="version"):
        parts_of(text)


@pytest.mark.parametrize("wanted", ["~=1.0", "1.0", ">= x", ">=1.0;<2"])
def test_a_text_that_is_no_range_is_refused(wanted):
    with pytest.raises(ValueError, match=r"version|range"):
        fits("1.0", wanted)
