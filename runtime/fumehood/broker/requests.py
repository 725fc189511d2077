"""What the worker asks, checked before the broker believes any of it: types, lengths, hard limits.

The worker parses strangers' bytes and may be taken over, so nothing of its messages is used unchecked: names
have a fixed form, numbers lie within what an operator could ask, lists are short. A message that does not fit is refused as
`bad_request`; the broker goes on. Pure.
"""

from __future__ import annotations

import functools
import json
import re
import socket
from collections.abc import Mapping
from typing import Any

from fumehood.broker.supplies import COVERED, MOST_BYTES, MOST_FILES, Supplied
from fumehood.faults import Refused
from fumehood.model import (
    ArgumentTest,
    Binding,
    Deny,
    Frame,
    ReadOnlyMount,
    SeccompPolicy,
    SeccompRule,
    UserNamespace,
    WorkspaceMode,
)
from fumehood.ports import Listen
from fumehood.reasons import Reason

_TASK = re.compile(r"[0-9a-hjkmnp-tv-z]{26}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SUPPLIED = re.compile(r"(fumehood|secrets)(/[A-Za-z0-9_][A-Za-z0-9._-]{0,63}){1,4}")
_GIB = 2**30
MOST_LISTENS = 60
_POLICY_CHARS = 128 * 1024
_SYNTHETIC_V4, _SYNTHETIC_V6 = 0xC612_0000, bytes.fromhex("fd5300000000")  # 198.18.0.0/15 and fd53::/48
_DNS_PORT = 53

HARD = {
    "cpu": (0.01, 1024.0),
    "memory_bytes": (8 * 2**20, 1024 * _GIB),
    "pids": (1, 32768),
    "open_files": (16, 1_048_576),
    "tmp_bytes": (4096, 64 * _GIB),
    "disk_bytes": (4096, 1024 * _GIB),
    "wall_s": (0.05, 24 * 3600.0),
    "seconds": (0.05, 24 * 3600.0),
}


def refuse(detail: str) -> Refused:
    """The refusal of a malformed request."""
    return Refused(Deny(reason=Reason.BAD_REQUEST, rule="broker.requests", detail=detail))


def task_of(args: Mapping[str, Any]) -> str:
    """The task id."""
    return _text(args, "task", _TASK)


def runtime_of(args: Mapping[str, Any]) -> str:
    """A runtime's id, which has the form of a task's."""
    return _text(args, "runtime_id", _TASK)


def frame_of(value: object) -> Frame:
    """A frame, every field checked."""
    args = _mapping(value, "frame")
    return Frame(
        image=_text(args, "image", _DIGEST),
        docker_image=_maybe_text(args, "docker_image", _DIGEST),
        engine=_maybe_choice(args, "engine", ("docker", "oci")),
        runtime=_maybe_choice(args, "runtime", ("crun", "runc", "runsc")),
        cpu=_number(args, "cpu"),
        memory_bytes=_whole(args, "memory_bytes"),
        pids=_whole(args, "pids"),
        open_files=_whole(args, "open_files"),
        tmp_bytes=_whole(args, "tmp_bytes"),
        seccomp=_policy(args.get("seccomp")),
        user_namespace=UserNamespace(_choice(args, "user_namespace", tuple(UserNamespace))),
        accept_risk=_names(args, "accept_risk"),
    )


def binding_of(value: object) -> Binding:
    """A binding without its descriptor, which travels beside the message."""
    args = _mapping(value, "binding")
    mounts = args.get("mounts")
    if not isinstance(mounts, list) or len(mounts) > 16:
        raise refuse("binding.mounts must be a list of at most 16")
    unlimited = args.get("disk_unlimited") is True
    return Binding(
        workspace=WorkspaceMode(_choice(args, "workspace", tuple(WorkspaceMode))),
        workspace_fd=None,
        workspace_path=_path(args, "workspace_path"),
        disk_bytes=0 if unlimited else _whole(args, "disk_bytes"),
        disk_unlimited=unlimited,
        mounts=tuple(_mount(_mapping(mount, "mount")) for mount in mounts),
        wall_s=_number(args, "wall_s"),
    )


def files_of(args: Mapping[str, Any]) -> tuple[Supplied, ...]:
    """The files that a box is supplied with, without their bytes, which travel beside the message."""
    value = args.get("files", [])
    if not isinstance(value, list) or len(value) > MOST_FILES:
        raise refuse(f"files must be a list of at most {MOST_FILES}")
    files = tuple(_supplied(_mapping(each, "file")) for each in value)
    names = [each.name for each in files]
    if any(a == b or b.startswith(f"{a}/") for at, a in enumerate(names) for b in (*names[:at], *names[at + 1 :])):
        raise refuse("two files have one name")
    covered = [each.over for each in files if each.over is not None]
    if len({*covered}) < len(covered) or sum(each.size_bytes for each in files) > MOST_BYTES:
        raise refuse(f"files hold at most {MOST_BYTES} bytes and go over different places")
    return files


def listens_of(args: Mapping[str, Any]) -> tuple[Listen, ...]:
    """Where a gate listens: at synthetic addresses or at all of them, and no two at one place."""
    value = args.get("listen")
    if not isinstance(value, list) or len(value) > MOST_LISTENS:
        raise refuse(f"listen must be a list of at most {MOST_LISTENS}")
    listens = tuple(_listen(_mapping(each, "listen")) for each in value)
    everywhere = [each.port for each in listens if each.v4 is None]
    somewhere = [(each.port, address) for each in listens for address in (each.v4, each.v6) if address is not None]
    if len({*everywhere}) + len({*somewhere}) < len(everywhere) + len(somewhere) or {*everywhere} & {port for port, _ in somewhere}:
        raise refuse("two listeners ask for one place")
    return listens


def command_of(args: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The argument list and the environment of a start."""
    argv, env = args.get("argv"), args.get("env")
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        raise refuse("argv must be a list of strings")
    if not isinstance(env, dict) or not all(isinstance(value, str) and "=" not in name for name, value in env.items()):
        raise refuse("env must map names to strings")
    return argv, env


def pause_of(args: Mapping[str, Any]) -> float:
    """For how many seconds a box may stand still."""
    return _number(args, "seconds")


def descriptor_of(fds: list[int]) -> int:
    """The one descriptor of a copy."""
    if len(fds) != 1:
        raise refuse("a copy takes one descriptor")
    return fds[0]


def inner_path_of(args: Mapping[str, Any]) -> str:
    """A path inside the workspace; `/workspace/` before it is taken off. What it leads to is checked at the opening."""
    path = args.get("path")
    if not isinstance(path, str) or not path or "\0" in path or len(path) > 4096:
        raise refuse("path must be a path inside the workspace")
    return path.removeprefix("/workspace/")


def most_bytes_of(args: Mapping[str, Any]) -> int | None:
    """How much of a file is copied at most; None for all of it."""
    return None if args.get("most_bytes") is None else _bounded(args, "most_bytes", 0, 2**40)


def strings_of(args: Mapping[str, Any], name: str, most: int) -> list[str]:
    """A list of at most `most` strings."""
    value = args.get(name)
    if not isinstance(value, list) or len(value) > most or not all(isinstance(item, str) for item in value):
        raise refuse(f"{name} must be a list of at most {most} strings")
    return value


def choice_of(args: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    """One of a few words."""
    return _choice(args, name, choices)


def _supplied(args: Mapping[str, Any]) -> Supplied:
    size_bytes = _bounded(args, "size_bytes", 0, MOST_BYTES)
    return Supplied(name=_text(args, "name", _SUPPLIED), size_bytes=size_bytes, over=_maybe_choice(args, "over", COVERED))


def _listen(args: Mapping[str, Any]) -> Listen:
    port, v4, v6 = _bounded(args, "port", 1, 65535), args.get("v4"), args.get("v6")
    if port == _DNS_PORT:
        raise refuse("port 53 is the gate's own")
    if v4 is None and v6 is None:
        return Listen(v4=None, v6=None, port=port)
    numbers = int.from_bytes(_address(v4, socket.AF_INET), "big")
    if numbers & 0xFFFE_0000 != _SYNTHETIC_V4 or not _address(v6, socket.AF_INET6).startswith(_SYNTHETIC_V6):
        raise refuse("a gate listens at synthetic addresses only")
    return Listen(v4=v4, v6=v6, port=port)


def _address(value: object, family: socket.AddressFamily) -> bytes:
    """The bytes of an address in its one canonical form."""
    try:
        raw = socket.inet_pton(family, value) if isinstance(value, str) else b""
    except (OSError, ValueError):
        raw = b""
    if not raw or socket.inet_ntop(family, raw) != value:
        raise refuse("listen needs an IPv4 and an IPv6 address, or neither")
    return raw


def _mount(args: Mapping[str, Any]) -> ReadOnlyMount:
    source = _path(args, "source")
    if source is None:
        raise refuse("a mount needs a source")
    return ReadOnlyMount(source=source, name=_text(args, "name", _NAME))


def _policy(value: object) -> SeccompPolicy:
    if not isinstance(value, str) or len(value) > _POLICY_CHARS:
        raise refuse(f"seccomp must be a policy's JSON of at most {_POLICY_CHARS} characters")
    return _policy_of(value)


@functools.lru_cache(maxsize=16)
def _policy_of(text: str) -> SeccompPolicy:
    """Nothing but the text decides what comes of it, and the boxes of a profile have one: checked once, and not each time."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refuse("seccomp is no JSON") from error
    args = _mapping(value, "seccomp")
    rules = args.get("rules")
    if not isinstance(rules, list) or len(rules) > 1024:
        raise refuse("seccomp.rules must be a list of at most 1024")
    return SeccompPolicy(
        name=_text(args, "name", _NAME),
        default_errno=None if args.get("default_errno") is None else _bounded(args, "default_errno", 1, 4095),
        rules=tuple(_rule(_mapping(rule, "seccomp rule")) for rule in rules),
    )


def _rule(args: Mapping[str, Any]) -> SeccompRule:
    tests = args.get("tests")
    if not isinstance(tests, list) or len(tests) > 6:
        raise refuse("a seccomp rule has at most 6 tests")
    return SeccompRule(
        names=tuple(strings_of(args, "names", 512)),
        action=_choice(args, "action", ("allow", "errno", "kill")),
        errno=_bounded(args, "errno", 0, 4095),
        tests=tuple(_test(_mapping(test, "seccomp test")) for test in tests),
    )


def _test(args: Mapping[str, Any]) -> ArgumentTest:
    return ArgumentTest(
        index=_bounded(args, "index", 0, 5),
        op=_choice(args, "op", ("eq", "ne", "lt", "le", "gt", "ge", "masked_eq")),
        value=_bounded(args, "value", 0, 2**64 - 1),
        mask=_bounded(args, "mask", 0, 2**64 - 1),
    )


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise refuse(f"{name} must be an object")
    return value


def _text(args: Mapping[str, Any], name: str, form: re.Pattern[str]) -> str:
    value = args.get(name)
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise refuse(f"{name} is malformed")
    return value


def _maybe_text(args: Mapping[str, Any], name: str, form: re.Pattern[str]) -> str | None:
    return None if args.get(name) is None else _text(args, name, form)


def _choice(args: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = args.get(name)
    if not isinstance(value, str) or value not in choices:
        raise refuse(f"{name} must be one of {', '.join(choices)}")
    return value


def _maybe_choice(args: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str | None:
    return None if args.get(name) is None else _choice(args, name, choices)


def _path(args: Mapping[str, Any], name: str) -> str | None:
    value = args.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or len(value) > 4096:
        raise refuse(f"{name} must be an absolute path")
    return value


def _names(args: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = strings_of(args, name, 64)
    if not all(_NAME.fullmatch(item) for item in found):
        raise refuse(f"{name} holds a malformed name")
    return tuple(found)


def _number(args: Mapping[str, Any], name: str) -> float:
    value = args.get(name)
    low, high = HARD[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise refuse(f"{name} must lie between {low} and {high}")
    return float(value)


def _whole(args: Mapping[str, Any], name: str) -> int:
    low, high = HARD[name]
    return _bounded(args, name, int(low), int(high))


def _bounded(args: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = args.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise refuse(f"{name} must be a whole number from {low} to {high}")
    return value
