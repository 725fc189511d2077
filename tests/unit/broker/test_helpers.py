"""Who enters a box: two static programs of ours, and no Python (a lazy import there ran a module of the box as root).

Its network alone is entered by a thread, which has no other work and ends there.
"""

from __future__ import annotations

import ast
import struct
from pathlib import Path

import pytest

import fumehood

ROOT = Path(fumehood.__file__).parent
PT_DYNAMIC, PT_INTERP = 2, 3


def test_no_python_of_ours_joins_a_namespace_but_a_boxs_network() -> None:
    joins = [
        (str(path.relative_to(ROOT)), ast.unparse(node))
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr == "setns")
        or (isinstance(node, ast.Name) and node.id == "setns")
    ]
    assert joins == [("broker/network_thread.py", "_libc.setns")]
    source = (ROOT / "broker" / "network_thread.py").read_text()
    assert "_libc.setns(pidfd, _CLONE_NEWNET)" in source
    assert "_CLONE_NEWNET = 0x40000000\n" in source


@pytest.mark.parametrize("name", ["init", "enter"])
def test_what_enters_a_box_is_static(name: str) -> None:
    program = ROOT / "broker" / "init" / "bin" / name
    if not program.exists():
        pytest.skip("needs ./scripts/setup: the static programs are built there")
    elf = program.read_bytes()
    assert elf[:5] == b"\x7fELF\x02"
    (offset,), (size, count) = struct.unpack_from("=Q", elf, 32), struct.unpack_from("=HH", elf, 54)
    kinds = {struct.unpack_from("=I", elf, offset + number * size)[0] for number in range(count)}
    assert not kinds & {PT_DYNAMIC, PT_INTERP}, "it loads what somebody else could have put there"
