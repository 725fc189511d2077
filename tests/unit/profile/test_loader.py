"""Profiles: defaults, every kind of mistake with its place, inheritance, and where files may come from."""

import os
from pathlib import Path
from typing import Any

import pytest

from fumehood.faults import FumehoodError, Refused
from fumehood.model import ArgumentBounds, CommitMode, Limits, ReadOnlyMount, Scope, UserNamespace, WorkspaceMode
from fumehood.profile import loader
from fumehood.reasons import Reason

PROTECTED = (".git/hooks", ".git/config", ".vscode", ".idea", ".envrc", "fumehood.yaml", ".fumehood")


def test_everything_not_named_has_the_promised_default(shelf: Any) -> None:
    shelf.put("p", "image: python\n")
    profile = shelf.load("p")
    assert profile.limits == Limits()
    assert (profile.tools, profile.resources, profile.prompts) == (frozenset(), frozenset(), frozenset())
    assert profile.filesystem.workspace is WorkspaceMode.NONE
    assert profile.filesystem.commit is CommitMode.AUTO
    assert profile.filesystem.protect == PROTECTED
    assert profile.scope is Scope.CALL
    assert profile.user_namespace is UserNamespace.WHEN_POSSIBLE
    assert profile.seccomp.name == "default"
    assert profile.digest.startswith("sha256:")


def test_every_field_arrives(shelf: Any) -> None:
    shelf.put(
        "p",
        """
image: sha256:1111111111111111111111111111111111111111111111111111111111111111
command: [server, --flag, "1"]
scope: session
tools: {allow: [a, b]}
resources: {allow: "*"}
prompts: {allow: [p]}
arguments: {string: 2KiB, items: 7, depth: 5, values: 9, open: [a, b/c]}
engine: oci
runtime: crun
limits: {cpu: 2, memory: 1GiB, pids: 64, wall: 2m, idle: 30s, output: 64KiB, result: 1MiB, disk: unlimited,
         open_files: 99}
filesystem:
  workspace: direct
  protect: ["*.key"]
  mounts: [{source: /srv/data/, name: data}]
  tmp: 1MiB
seccomp: unix-sockets
environment: {B: "2", A: "1"}
network: {egress: []}
credentials: {}
devices: []
user_namespace: always
accept_risk: [runc-1.1.5]
""",
    )
    profile = shelf.load("p")
    assert profile.command == ("server", "--flag", "1")
    assert (profile.tools, profile.resources, profile.prompts) == (frozenset("ab"), None, frozenset("p"))
    assert (profile.engine, profile.runtime, profile.scope) == ("oci", "crun", Scope.SESSION)
    assert profile.limits == Limits(
        cpu=2.0,
        memory_bytes=2**30,
        pids=64,
        wall_s=120.0,
        idle_s=30.0,
        output_bytes=2**16,
        result_bytes=2**20,
        disk_bytes=0,
        disk_unlimited=True,
        tmp_bytes=2**20,
        open_files=99,
    )
    assert profile.arguments == ArgumentBounds(string_bytes=2048, items=7, depth=5, values=9, open=("a", "b/c"))
    assert profile.filesystem.mounts == (ReadOnlyMount(source="/srv/data", name="data"),)
    assert profile.filesystem.protect == ("*.key",)
    assert profile.environment == (("A", "1"), ("B", "2"))
    assert profile.user_namespace is UserNamespace.ALWAYS
    assert profile.accept_risk == ("runc-1.1.5",)
    assert profile.seccomp.name == "unix-sockets"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "1:1: image: expected an image's name; there is no default"),
        ("- a", "1:1: expected a map of fields, found a list"),
        ("image: python\nlimts: {}", "2:1: limts: expected a known field; nearest valid name: limits"),
        ("image: a\nlimits: {tmp: 1MiB}", "2:10: limits.tmp: expected a known field; did you mean filesystem.tmp?"),
        ("image: a\nworkspace: rw", "2:1: workspace: expected a known field; did you mean filesystem.workspace?"),
        ("image: a\nlimits:\n  memory: 512", "3:11: limits.memory: expected a size with its unit"),
        ("image: a\nlimits:\n  wall: 60", "3:9: limits.wall: expected a duration with its unit (ms, s, m, h)"),
        ("image: a\nlimits: {wall: 60MiB}", "2:16: limits.wall: expected a duration with its unit"),
        ("image: a\nlimits: {memory: 1KiB}", "2:18: limits.memory: expected between 8MiB and 16TiB, found 1KiB"),
        ("image: a\narguments: {depth: 61}", "2:20: arguments.depth: expected"),
        ("image: a\narguments: {string: 4}", "2:21: arguments.string: expected a size with its unit"),
        ("image: a\narguments: {open: ['*', /a]}", "arguments.open[1]: expected a tool's name"),
        ("image: a\narguments: {open: '*'}", "arguments.open: expected"),
        ("image: a\nlimits: {cpu: '1'}", "2:15: limits.cpu: expected a number, found '1'"),
        ("image: a\nlimits: {cpu: true}", "2:15: limits.cpu: expected a number, found True"),
        ("image: a\nlimits: {cpu: 0}", "2:15: limits.cpu: expected at least 0.01, found 0"),
        ("image: a\nlimits: {pids: 1.5}", "2:16: limits.pids: expected a whole number, found 1.5"),
        ("image: a\nlimits: {disk: much}", "2:16: limits.disk: expected a size with its unit"),
        (
            "image: a\nlimits: {disk: 0B}",
            "2:16: limits.disk: expected between 64KiB and 16TiB, or `unlimited`, found 0B",
        ),
        ("image: a\nfilesystem: {tmp: 0B}", "2:19: filesystem.tmp: expected between 64KiB and 16TiB, found 0B"),
        ("image: a\nlimits: {idle: 2m}", "2:16: limits.idle: expected at most `limits.wall`"),
        ("image: a\nlimits: 1", "2:9: limits: expected a map of fields, found 1"),
        ("image: a\nscope: calls", "2:8: scope: expected call or session, found 'calls'; nearest valid name: call"),
        ("image: a\nengine: podman", "2:9: engine: expected docker or oci, found 'podman'"),
        ("image: ../../etc", "1:8: image: expected an image's name or sha256:<64 hex digits>, found '../../etc'"),
        ('image: "a\\n"', "1:8: image: expected an image's name"),
        ("image: a\ncommand: ls -l", "2:10: command: expected a list, found 'ls -l'"),
        ("image: a\ncommand: [ls, 1]", '2:15: command[1]: expected a string; write "1" in quotes'),
        ("image: a\ntools: {allow: git_log}", '2:16: tools.allow: expected a list of names, or "*" for all of them'),
        ("image: a\ntools: {allow: ['*']}", "2:16: tools.allow: expected names only; for all of them write"),
        ("image: a\nenvironment: {A: 1}", '2:18: environment.A: expected a string; write "1" in quotes'),
        ("image: a\nenvironment: {A: on}\nseccomp: ../x", "3:10: seccomp: expected a name"),
        ("image: a\nenvironment: {'A=B': x}", "2:15: environment.A=B: expected a variable name"),
        (
            "image: a\nfilesystem: {mounts: [{source: data, name: d}]}",
            "2:32: filesystem.mounts[0].source: expected an abs",
        ),
        ("image: a\nfilesystem: {mounts: [{source: /a/../b, name: d}]}", "expected an absolute path without `..`"),
        ("image: a\nfilesystem: {mounts: [{source: /a}]}", "2:23: filesystem.mounts[0].name: expected this field"),
        ("image: a\nfilesystem: {mounts: [{source: /a, name: d/e}]}", "filesystem.mounts[0].name: expected a name"),
        (
            "image: a\nfilesystem: {mounts: [{source: /a, name: d}, {source: /b, name: d}]}",
            "2:22: filesystem.mounts: expected each mount's name once",
        ),
        (
            "image: a\nfilesystem: {protect: [/etc]}",
            "filesystem.protect[0]: expected a pattern relative to the workspace",
        ),
        ("image: a\nfilesystem: {workspace: direct}", "2:25: filesystem.workspace: expected `limits.disk: unlimited`"),
        ("image: a\nlimits: {disk: unlimited}", "2:16: limits.disk: expected a size: `unlimited` is for"),
        (
            "image: a\nfilesystem: {workspace: ro, commit: ask}",
            "2:37: filesystem.commit: expected `filesystem.workspace: rw`",
        ),
        ("image: a\nseccomp: defalt", "2:10: seccomp: there is no seccomp file 'defalt'; nearest valid name: default"),
        ("image: a\nextends: pyton", "2:10: extends: there is no profile 'pyton'; nearest valid name: python"),
        ("image: a\nextends: p", "2:10: extends: expected another profile than this one"),
        ("image: a\nlimits: {cpu: .nan}", "2:15: limits.cpu: expected a plain finite number"),
        ("image: a\nimage: b", "2:1: image: expected each key once"),
    ],
)
def test_a_mistake_is_told_with_line_column_and_expectation(shelf: Any, text: str, said: str) -> None:
    assert any(said in problem for problem in shelf.problems(text)), shelf.problems(text)


def test_all_mistakes_of_a_file_are_told_at_once(shelf: Any) -> None:
    told = shelf.problems("image: a\nlimits: {cpu: x, memory: 1}\nfoo: 1\n")
    assert [line.split(": ")[1] for line in told] == ["limits.cpu", "limits.memory", "foo"]


def test_what_this_release_cannot_enforce_is_refused_not_ignored(shelf: Any) -> None:
    shelf.put("p", "image: a\ndevices: [/dev/kvm]\n")
    with pytest.raises(Refused) as caught:
        loader.load("p", shelf.folders, os.getuid())
    assert caught.value.reason is Reason.UNENFORCEABLE
    assert "p.yaml:2:" in caught.value.detail


def test_extends_lays_fields_over_the_parent(shelf: Any) -> None:
    shelf.put(
        "base-one",
        "image: a\ncommand: [x]\nlimits: {cpu: 2, pids: 9}\nenvironment: {A: '1', B: '2'}\ntools: {allow: [t]}\n",
    )
    shelf.put("child", "extends: base-one\nlimits: {pids: 5}\nenvironment: {B: '3'}\nfilesystem: {workspace: ro}\n")
    profile = shelf.load("child")
    assert (profile.image, profile.command, profile.tools) == ("a", ("x",), frozenset("t"))
    assert (profile.limits.cpu, profile.limits.pids, profile.limits.wall_s) == (2.0, 5, 60.0)
    assert dict(profile.environment) == {"A": "1", "B": "3"}
    assert profile.filesystem.workspace is WorkspaceMode.RO


def test_extends_is_one_level(shelf: Any) -> None:
    shelf.put("a1", "image: a\n")
    shelf.put("a2", "extends: a1\n")
    assert "1:10: extends: expected one level; a2 itself extends a1" in shelf.problems("extends: a2\n")[0]


def test_combinations_are_judged_after_extending(shelf: Any) -> None:
    shelf.put("a1", "image: a\nfilesystem: {workspace: direct}\nlimits: {disk: unlimited}\n")
    assert "expected `limits.disk: unlimited`" in shelf.problems("extends: a1\nlimits: {disk: 1GiB}\n")[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("scope: session", "pool.started: expected `scope: call` beside it"),
        ("filesystem: {workspace: scratch}", "pool.started: expected `filesystem.workspace: none` beside it"),
        ("filesystem: {workspace: ro}", "cannot be given a ro workspace"),
        ("credentials: {a: {deliver: env, variable: A}, b: {deliver: file, file: b}}", "expected `deliver: gate` for a, b"),
    ],
)
def test_no_server_stands_by_that_would_need_something_of_its_calls(shelf: Any, more: str, said: str) -> None:
    problems = shelf.problems(f"image: a\npool: {{started: 1}}\n{more}\n")
    assert any(said in problem for problem in problems), problems
    shelf.put("p", f"image: a\npool: {{started: 0}}\n{more}\n")
    assert shelf.load("p").pool.started == 0


def test_unknown_profile_names_the_nearest(shelf: Any) -> None:
    with pytest.raises(Refused) as caught:
        loader.load("mcp-server-gti", shelf.folders, os.getuid())
    assert caught.value.reason is Reason.PROFILE_UNKNOWN
    assert "nearest valid name: mcp-server-git" in caught.value.detail


@pytest.mark.parametrize("name", ["", "..", "UPPER", "a b", "a\n", "-x"])
def test_a_name_is_a_name(shelf: Any, name: str) -> None:
    with pytest.raises(Refused) as caught:
        loader.load(name, shelf.folders, os.getuid())
    assert caught.value.reason is Reason.PROFILE_UNKNOWN


def test_a_profile_planted_in_the_working_directory_is_not_found(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = shelf.folder.parent / "workspace"
    workspace.mkdir()
    (workspace / "planted.yaml").write_text("image: evil\n")
    (workspace / "python.yaml").write_text("image: evil\n")
    monkeypatch.chdir(workspace)
    with pytest.raises(Refused):
        loader.load("planted", shelf.folders, os.getuid())
    assert shelf.load("python").image == "python"


def test_a_path_is_taken_when_it_is_safe(shelf: Any) -> None:
    path = shelf.put("p", "image: a\n")
    assert shelf.load(str(path)).name == str(path)
    path.chmod(0o666)
    with pytest.raises(FumehoodError) as caught:
        shelf.load(str(path))
    assert caught.value.reason is Reason.CONFIG_UNSAFE


def test_the_first_folder_wins_and_an_unsafe_file_is_not_passed_over(shelf: Any) -> None:
    path = shelf.put("python", "image: mine\n")
    assert shelf.load("python").image == "mine"
    path.chmod(0o602)
    with pytest.raises(FumehoodError) as caught:
        shelf.load("python")
    assert caught.value.reason is Reason.CONFIG_UNSAFE


def test_the_digest_is_of_the_meaning(shelf: Any) -> None:
    shelf.put("a1", "image: a\ntools: {allow: [x, y]}\n")
    shelf.put("a2", "# other words\ntools:\n  allow: [y, x]\nimage: 'a'\nlimits: {wall: 1m}\n")
    shelf.put("a3", "image: a\ntools: {allow: [x, y]}\nlimits: {pids: 127}\n")
    first, second, third = (shelf.load(name).digest for name in ("a1", "a2", "a3"))
    assert first == second != third


def test_folders_in_order() -> None:
    found = loader.search_folders(("/opt/p",), {"HOME": "/home/a"})
    assert found[:3] == (Path("/opt/p"), Path("/home/a/.config/fumehood/profiles"), Path("/etc/fumehood/profiles"))
    assert found[3] == loader.shipped_folder()
    assert loader.search_folders((), {"HOME": "relative"})[0] == Path("/etc/fumehood/profiles")
    assert loader.search_folders((), {"XDG_CONFIG_HOME": "/x"})[0] == Path("/x/fumehood/profiles")
