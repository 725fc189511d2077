"""Warnings, and sentences for people."""

from typing import Any

import pytest

from fumehood.profile.explain import sentences
from fumehood.profile.lint import findings


def warnings(shelf: Any, text: str, parent: str = "") -> list[str]:
    if parent:
        shelf.put("base-one", parent)
    shelf.put("p", text)
    return [str(problem).removeprefix(f"{shelf.folder}/p.yaml:") for problem in findings(shelf.fully("p"))]


@pytest.mark.parametrize(
    ("parent", "child", "said"),
    [
        ("tools: {allow: [a]}", "tools: {allow: [a, b]}", "2:16: warning: tools.allow: widens base-one: adds b"),
        ("tools: {allow: [a]}", "tools: {allow: '*'}", "tools.allow: widens base-one: all instead of 1"),
        ("", "resources: {allow: [x]}", "resources.allow: widens base-one: adds x"),
        ("", "limits: {memory: 1GiB}", "2:18: warning: limits.memory: widens base-one: 1GiB instead of 512MiB"),
        ("", "limits: {wall: 2m}", "limits.wall: widens base-one: 2m instead of 1m"),
        ("limits: {idle: 5s}", "limits: {idle: 6s}", "limits.idle: widens base-one"),
        ("limits: {idle: 5s}", "limits: {idle: null}", "limits.idle: widens base-one"),
        ("", "filesystem: {tmp: 65MiB}", "filesystem.tmp: widens base-one: 65MiB instead of 64MiB"),
        ("", "filesystem: {workspace: ro}", "filesystem.workspace: widens base-one: ro instead of none"),
        (
            "filesystem: {workspace: rw, commit: ask}",
            "filesystem: {commit: auto}",
            "filesystem.commit: widens base-one: auto instead of ask",
        ),
        (
            "filesystem: {workspace: rw}",
            "filesystem: {protect: [.git/hooks, .git/config]}",
            "filesystem.protect: widens base-one: no longer protects .vscode, .idea",
        ),
        ("", "filesystem: {mounts: [{source: /srv, name: s}]}", "filesystem.mounts: widens base-one: shows /srv"),
        ("", "seccomp: unix-sockets", "seccomp: widens base-one: other system calls (unix-sockets instead of default)"),
        ("user_namespace: always", "user_namespace: when-possible", "user_namespace: widens base-one"),
        ("", "accept_risk: [cve-1]", "accept_risk: widens base-one: accepts cve-1"),
        ("", "scope: session", "scope: widens base-one"),
        ("", "pool: {started: 2}", "pool.started: widens base-one: 2 servers that run before their call"),
        ("", "arguments: {depth: 33}", "arguments.depth: widens base-one: 33 instead of 32"),
        ("", "arguments: {string: 2MiB}", "2:21: warning: arguments.string: widens base-one: 2MiB instead of 1MiB"),
        ("arguments: {open: [a]}", "arguments: {open: [a, b/c]}", "arguments.open: widens base-one: takes what no schema describes at b/c"),
        ("", "image: b", "image: changes what runs: b instead of a"),
    ],
)
def test_widening_is_named(shelf: Any, parent: str, child: str, said: str) -> None:
    assert any(said in line for line in warnings(shelf, f"extends: base-one\n{child}\n", f"image: a\n{parent}\n"))


def test_narrowing_is_silent(shelf: Any) -> None:
    parent = "image: a\ntools: {allow: [a, b]}\nfilesystem: {workspace: rw}\n"
    child = "extends: base-one\ntools: {allow: [a]}\nlimits: {cpu: 0.5, memory: 64MiB, disk: 1MiB}\n"
    child += "filesystem: {commit: ask, tmp: 1MiB}\nuser_namespace: always\n"
    assert warnings(shelf, child, parent) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("environment: {LD_PRELOAD: /x.so}", "2:27: warning: environment.LD_PRELOAD: makes a loader"),
        ("environment: {GITHUB_TOKEN: abc}", "environment.GITHUB_TOKEN: looks like a secret"),
        ("environment: {A: '${HOME}'}", "environment.A: is taken literally"),
        ("tools: {allow: '*'}", "tools.allow: allows tools that nobody has read yet"),
        ("filesystem: {workspace: direct}\nlimits: {disk: unlimited}", "writes straight to the host"),
        ("filesystem: {workspace: rw, protect: []}", "leaves out .git/hooks"),
        ("filesystem: {protect: [x]}", "filesystem.protect: has no effect: a none workspace commits nothing"),
        ("limits: {disk: 1MiB}", "limits.disk: has no effect"),
        ("limits: {memory: 32MiB}", "filesystem.tmp: is more than limits.memory"),
        ("accept_risk: [cve-1]", "accepts cve-1: every receipt will say so"),
        ("seccomp: unix-sockets", "seccomp: allows other system calls than the default"),
        ("arguments: {open: ['*']}", "arguments.open: lets a server's own schemas decide"),
        ("tools: {allow: [a]}\narguments: {open: [a/b, ab]}", "arguments.open: has no effect: ab is no tool"),
    ],
)
def test_what_people_regret_is_named(shelf: Any, text: str, said: str) -> None:
    assert any(said in line for line in warnings(shelf, f"image: a\n{text}\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "It sees no directory of the host."),
        ("", "Clients can use no tool."),
        ("tools: {allow: [b, a]}", "Clients can use the tools a, b, and see no other."),
        ("tools: {allow: '*'}", "Clients can use every tool that the server has, also ones that an upgrade adds."),
        ("filesystem: {workspace: ro}", "It can read the caller's directory at /workspace and change nothing in it."),
        (
            "filesystem: {workspace: rw}",
            "When a call succeeds its changes are applied to the directory; otherwise discarded.",
        ),
        ("filesystem: {workspace: rw, commit: ask}", "Its changes wait for `fumehood commit` or `fumehood discard`."),
        ("filesystem: {mounts: [{source: /srv, name: s}]}", "It can read /srv at /mnt/s."),
        ("", "It cannot make UNIX sockets other than unnamed pairs."),
        ("seccomp: unix-sockets", "It can make UNIX sockets."),
        ("", "It has no network but its own loopback, no credentials and no devices."),
        ("limits: {wall: 90s, idle: 5s}", "It is ended after 90s, and after 5s of silence."),
        ("user_namespace: always", "It runs in a user namespace of its own, or not at all."),
        ("accept_risk: [cve-1]", "It runs despite the known risks cve-1."),
        (
            "tools: {allow: [a]}\narguments: {string: 4KiB, items: 5, open: [a/b]}",
            "Arguments are bounded (4KiB a string, 5 items a place, 32 levels, 100000 values), and hold nothing that the tool's schema"  # noqa: ISC004
            " does not describe, but at a/b.",
        ),
        (
            "tools: {allow: [a]}\narguments: {open: ['*']}",
            "Arguments are bounded (1MiB a string, 10000 items a place, 32 levels, 100000 values), and may hold anything where a tool's"  # noqa: ISC004
            " schema leaves objects open.",
        ),
    ],
)
def test_explain_says_what_the_profile_means(shelf: Any, text: str, said: str) -> None:
    shelf.put("p", f"image: a\n{text}\n")
    assert said in sentences(shelf.load("p"))
