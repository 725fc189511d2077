"""Test system calls: what a filter answers on paper is what the kernel answers under it, and nothing answers so without it."""

from __future__ import annotations

import errno
import json
import os
import platform
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import fumehood
from fumehood.broker import filters, proving
from fumehood.broker.readback import judge_proof
from fumehood.faults import BoxFailed
from fumehood.model import SeccompRule
from fumehood.profile import loader

DEFAULT = loader.load_seccomp("default", (loader.shipped_folder(),), os.getuid())
UNIX = loader.load_seccomp("unix-sockets", (loader.shipped_folder(),), os.getuid())
ALLOW_ALL = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)
KILLING = replace(DEFAULT, rules=(*DEFAULT.rules, SeccompRule(names=("keyctl", "setns"), action="kill")))
# Makes every call under the filter that it reads, or under none, and says the errnos.
CHILD = """
import ctypes, json, sys
from fumehood.broker import proving
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))
program = bytes.fromhex(sys.stdin.read())
if program:
    libc.prctl(38, 1, 0, 0, 0)
    assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program)), 0, 0) == 0
said = {}
for name in proving.CALLS:
    number, arguments = proving._call(name)
    ctypes.set_errno(0)
    done = libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments), ctypes.c_ulong(0), ctypes.c_ulong(0))
    said[name] = ctypes.get_errno() if done < 0 else 0
print(json.dumps(said))
"""


def in_the_kernel(program: bytes) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=program.hex(), capture_output=True, text=True, check=True, timeout=20,
        env={"PYTHONPATH": str(Path(fumehood.__file__).parents[1])},
    )  # fmt: skip
    said: dict[str, int] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("policy", [DEFAULT, UNIX], ids=["default", "unix-sockets"])
def test_on_paper_a_filter_answers_as_in_the_kernel(policy: filters.SeccompPolicy) -> None:
    program = filters.compile_filter(policy)
    planned = proving.planned_answers(program)
    assert planned == in_the_kernel(program)
    assert planned.keys() == proving.CALLS.keys()


def test_without_a_filter_each_call_does_nothing_and_says_something_else() -> None:
    planned = proving.planned_answers(filters.compile_filter(DEFAULT))
    unfiltered = in_the_kernel(b"")
    assert [name for name in planned if planned[name] == unfiltered[name]] == []
    assert [name for name, number in unfiltered.items() if number == 0] == ["unshare"]
    assert in_the_kernel(ALLOW_ALL) == unfiltered


def test_every_call_is_one_that_no_policy_may_allow() -> None:
    """Else an allowed call would stand for nothing."""
    for name in proving.CALLS:
        call = name.split()[0]
        assert call in filters.NEVER or call in filters.GUARDED, name
    assert set(proving.planned_answers(ALLOW_ALL).values()) == {0}


def test_a_call_that_would_kill_is_not_tried() -> None:
    planned = proving.planned_answers(filters.compile_filter(KILLING))
    assert proving.CALLS.keys() - planned.keys() == {"keyctl", "setns"}


def test_a_program_that_is_none_is_not_believed() -> None:
    for program in (b"", struct.pack("=HBBI", 0xFF, 0, 0, 0), struct.pack("=HBBI", 6, 0, 0, 0x80000000)):
        with pytest.raises(BoxFailed):
            proving.answer_of(program, 1, (0, 0, 0, 0))


def test_numbers_are_of_this_machine() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the first number of each call is x86-64's")
    import pyseccomp

    for name, (number, _, _) in proving.CALLS.items():
        assert number == pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name.split()[0]), name


PROOF = {"mode": "2", "filters": "1", "answers": {"keyctl": "EPERM", "clone3": "ENOSYS"}, "planned": {"keyctl": "EPERM", "clone3": "ENOSYS"}}


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"mode": "0"}, "seccomp mode is 0"),
        ({"filters": "2"}, "with 2 filters"),
        ({"filters": "not told"}, "not told"),
        ({"answers": {"keyctl": "EOPNOTSUPP", "clone3": "ENOSYS"}}, "EOPNOTSUPP"),
        ({"answers": {"keyctl": "EPERM"}}, "test system calls"),
        ({"answers": {}, "planned": {}}, "no test system call"),
    ],
)
def test_each_part_of_a_proof_is_compared(changed: dict[str, object], word: str) -> None:
    assert judge_proof(PROOF) == []
    (wrong,) = judge_proof({**PROOF, **changed})
    assert word in wrong


def test_root_needs_no_proof() -> None:
    assert judge_proof(None) == []


def test_answers_are_told_by_name() -> None:
    assert proving._named({"a": errno.EPERM, "b": 0, "c": 4000}) == {"a": "EPERM", "b": "allowed", "c": "4000"}
