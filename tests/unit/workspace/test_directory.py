from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.broker.directory import refuse_mounts_below, refuse_path
from fumehood.broker.idmaps import only, swapped
from fumehood.faults import Refused

STATE = Path("/var/lib/fumehood")


@pytest.mark.parametrize("path", ["/home/a", "/srv/x", "/procs", "/device", "/var/lib/fumehood2", "/var/lib/other"])
def test_ordinary_directories_are_given(path: str) -> None:
    refuse_path(path, None, STATE)


@pytest.mark.parametrize(
    "path", ["/", "/proc", "/proc/1", "/sys/fs", "/dev", "/var", "/var/lib", "/var/lib/fumehood/run"]
)
def test_the_hosts_own_directories_are_refused(path: str) -> None:
    with pytest.raises(Refused):
        refuse_path(path, None, STATE)


@pytest.mark.parametrize(("path", "allowed"), [("/srv/a", True), ("/srv", True), ("/srv2", False), ("/home", False)])
def test_roots_are_whole_names(path: str, allowed: bool) -> None:
    if allowed:
        refuse_path(path, ("/srv/",), STATE)
    else:
        with pytest.raises(Refused):
            refuse_path(path, ("/srv/",), STATE)


def test_mounts_below_are_found_through_their_escapes() -> None:
    line = rb"36 35 98:0 / /srv/a\040b/c rw,noatime master:1 - ext3 /dev/root rw"
    refuse_mounts_below("/srv/a b/c", line)
    refuse_mounts_below("/srv/a", line)
    with pytest.raises(Refused, match="/srv/a b/c"):
        refuse_mounts_below("/srv/a b", line)


@given(st.integers(0, 2**32 - 2), st.integers(0, 2**32 - 2))
def test_a_swapped_map_holds_every_id_once_and_the_owner_as_the_box(owner: int, box: int) -> None:
    lines = [tuple(int(part) for part in line.split()) for line in swapped(owner, box).splitlines()]
    for side in (0, 1):
        ranges = sorted((line[side], line[side] + line[2]) for line in lines)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))
        assert all(count > 0 for _, _, count in lines)
    assert lines[0] == (owner, box, 1)
    assert sum(count for _, _, count in lines) == 2**32 - 1 - (owner != box)


def test_the_seen_map_has_the_owner_alone() -> None:
    assert only(1000, 7) == "1000 7 1\n"
