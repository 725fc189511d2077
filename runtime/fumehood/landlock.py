"""Landlock, as thin as it can be: a process gives up every file but those below the folders it names, for good.

Without root the worker has the user's uid, so the file system's own permissions keep it from nothing. This does where the kernel
has it (5.13; signals and abstract sockets from 6.12). Whoever calls needs no_new_privs. Standard library only.
Source: Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
# By the first ABI that knows it: every right on files, and what else is given up.
_FILES = {1: (1 << 13) - 1, 2: 1 << 13, 3: _TRUNCATE, 5: 1 << 15}
_SCOPED_FROM, _SCOPED = 6, 0b11  # abstract sockets and signals to processes that are not confined as we are
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def version() -> int:
    """The kernel's Landlock ABI; 0 when it has none."""
    return max(0, _call(_CREATE_RULESET, None, 0, _VERSION_FLAG))


def keep_only(readable: Iterable[Path], devices: Iterable[Path]) -> int:
    """Give up all files but those below `readable`, and reading and writing `devices`. The ABI that did it, 0 if the kernel has none.

    Folders that do not exist are passed over. Descriptors that are open stay as they are. Raises OSError.
    """
    abi = version()
    if abi == 0:
        return 0
    handled = sum(bits for since, bits in _FILES.items() if since <= abi)
    fields = [handled, *([0] if abi >= 4 else []), *([_SCOPED] if abi >= _SCOPED_FROM else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _checked(_call(_CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset")
    try:
        for path in readable:
            _allow(ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
        for path in devices:
            _allow(ruleset, path, _READ_FILE | _WRITE_FILE | (_TRUNCATE & handled))
        _checked(_call(_RESTRICT_SELF, ruleset, 0, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return abi


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            access &= ~_READ_DIR
        rule = struct.pack("=Qi", access, place)
        _checked(_call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(place)


def _call(number: int, *arguments: bytes | int | None) -> int:
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return int(_libc.syscall(ctypes.c_long(number), *wide))


def _checked(result: int, step: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
    return result
