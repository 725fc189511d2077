"""What the worker asks is checked before it is believed: whatever it sends, the broker answers and goes on."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxlike import settings_for
from fumehood import wire
from fumehood.broker import requests, serve
from fumehood.broker.host import Host
from fumehood.faults import Refused
from fumehood.model import Binding, Frame, SeccompPolicy, SeccompRule, UserNamespace, WorkspaceMode
from fumehood.reasons import Reason

TASK = "01m829jadwt9kf03hmz752e4fz"
FRAME = Frame(
    image="sha256:" + "a" * 64, docker_image=None, engine="oci", runtime=None, cpu=1.0, memory_bytes=2**29, pids=128, open_files=1024,
    tmp_bytes=2**26, seccomp=SeccompPolicy(name="p", default_errno=1, rules=(SeccompRule(names=("read",), action="allow"),)),
    user_namespace=UserNamespace.WHEN_POSSIBLE, accept_risk=(),
)  # fmt: skip
BINDING: dict[str, Any] = {
    "workspace": "rw", "workspace_fd": None, "workspace_path": "/srv/x", "disk_bytes": 2**28, "disk_unlimited": False,
    "mounts": [{"source": "/srv/data", "name": "data"}], "wall_s": 60.0,
}  # fmt: skip

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["../x", "a\0b", "-rf", "\ud800", "x" * 5000])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8)


def frame() -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(json.dumps(FRAME.fields()))
    return fields


def test_a_frame_arrives_as_it_was_planned() -> None:
    assert requests.frame_of(frame()) == FRAME


def test_a_binding_arrives_as_it_was_planned() -> None:
    bound = requests.binding_of(BINDING)
    assert bound == Binding(
        workspace=WorkspaceMode.RW, workspace_fd=None, workspace_path="/srv/x", disk_bytes=2**28, disk_unlimited=False,
        mounts=bound.mounts, wall_s=60.0,
    )  # fmt: skip
    assert [(each.source, each.name) for each in bound.mounts] == [("/srv/data", "data")]


@settings(deadline=None)
@given(st.data())
def test_a_frame_with_any_field_changed_is_refused_or_within_the_limits(data: st.DataObject) -> None:
    fields = frame()
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(values)
    try:
        taken = requests.frame_of(fields)
    except Refused as refused:
        assert refused.reason is Reason.BAD_REQUEST
        return
    for limit in ("cpu", "memory_bytes", "pids", "open_files", "tmp_bytes"):
        low, high = requests.HARD[limit]
        assert low <= getattr(taken, limit) <= high


@settings(deadline=None)
@given(st.data())
def test_a_binding_with_any_field_changed_is_refused_or_sane(data: st.DataObject) -> None:
    fields = {**BINDING}
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(values)
    try:
        bound = requests.binding_of(fields)
    except Refused as refused:
        assert refused.reason is Reason.BAD_REQUEST
        return
    assert bound.workspace_fd is None, "a descriptor never comes by number"
    assert all("/" not in mount.name and mount.source.startswith("/") for mount in bound.mounts)


@settings(deadline=None)
@given(st.data())
def test_a_policy_with_any_field_changed_is_refused_or_keeps_its_form(data: st.DataObject) -> None:
    fields = json.loads(FRAME.seccomp.text)
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(values)
    try:
        taken = requests.frame_of({**frame(), "seccomp": json.dumps(fields)}).seccomp
    except Refused as refused:
        assert refused.reason is Reason.BAD_REQUEST
        return
    assert all(isinstance(name, str) for rule in taken.rules for name in rule.names)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, json.dumps({"rules": "x" * 2**18}), {"name": "p"}, 1, None])
def test_a_policy_that_is_no_short_json_object_is_refused(text: object) -> None:
    for _ in range(2):  # what is kept is what was accepted
        with pytest.raises(Refused) as refused:
            requests.frame_of({**frame(), "seccomp": text})
        assert refused.value.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize("number", [math.nan, math.inf, -1, 0, 2**70, True, "1", None, [1]])
@pytest.mark.parametrize("name", ["cpu", "memory_bytes", "pids", "open_files", "tmp_bytes"])
def test_numbers_that_are_none_or_out_of_bounds_are_refused(name: str, number: object) -> None:
    with pytest.raises(Refused):
        requests.frame_of({**frame(), name: number})


@pytest.mark.parametrize("task", ["", "l" * 26, TASK.upper(), TASK + "\n", "../" + TASK[3:], TASK[:-1], TASK + "0", 1, None, [TASK]])
def test_a_task_id_has_one_form(task: object) -> None:
    with pytest.raises(Refused):
        requests.task_of({"task": task})


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "-", "a" * 65, "a\0", "a b", 3])
def test_a_mounts_name_is_one_plain_name(name: object) -> None:
    with pytest.raises(Refused):
        requests.binding_of({**BINDING, "mounts": [{"source": "/srv", "name": name}]})


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, 1, None])
def test_a_path_in_the_workspace_is_a_path(path: object) -> None:
    with pytest.raises(Refused):
        requests.inner_path_of({"path": path})


@pytest.mark.parametrize("fds", [[], [1, 2]])
def test_a_copy_takes_one_descriptor(fds: list[int]) -> None:
    with pytest.raises(Refused):
        requests.descriptor_of(fds)


# ---- the dispatcher --------------------------------------------------------------------------------------------------


class Talk:
    """A broker's dispatcher without a host: what gets past the checks ends at a box that is not there."""

    def __init__(self, folder: Path) -> None:
        chosen = replace(settings_for(folder), boxes=0)
        host = object.__new__(Host)
        host.settings = chosen
        self.ours, self.theirs = wire.pair()
        self.broker = serve.Broker(host, self.ours, -1)
        self.ours.settimeout(5)
        self.sending = threading.Lock()

    def ask(self, message: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        serve._answer(self.broker, self.theirs, self.sending, message, fds)
        got = wire.receive(self.ours)
        assert got is not None
        wire.close_all(got[1])
        return got[0]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    made = Talk(tmp_path_factory.mktemp("broker"))
    with made.ours, made.theirs:
        yield made


VERBS = ["make", "bind", "start", "wait", "kill", "put", "get", "settle", "remove", "pending_open", "pending_commit", "pending_discard", ""]
shapes = st.fixed_dictionaries(
    {},
    optional={
        "task": st.just(TASK) | values, "frame": st.just(FRAME.fields()) | values, "binding": st.just(BINDING) | values, "argv": values,
        "env": values, "reason": values, "path": values, "action": values, "protect": values,
    },
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(verb=st.sampled_from(VERBS) | values, args=shapes | values, count=st.integers(0, 4))
def test_no_message_ends_the_broker_and_each_is_answered(talk: Talk, verb: object, args: object, count: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reply = talk.ask({"id": 7, "verb": verb, "args": args}, [os.open(os.devnull, os.O_RDWR) for _ in range(count)])
    assert reply["id"] == 7
    assert set(reply) & {"ok", "deny", "fault"}
    if "fault" in reply:
        assert reply["fault"]["reason"] != Reason.INTERNAL, reply
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was kept"


@pytest.mark.parametrize("verb", ["bind", "start", "wait", "put", "get", "settle"])
def test_a_verb_for_a_box_that_was_never_made_is_refused(talk: Talk, verb: str) -> None:
    args = {"task": TASK, "binding": BINDING, "argv": ["x"], "env": {}, "reason": "wall", "path": "x", "action": "commit", "protect": []}
    wanted = {"start": 3, "put": 1, "get": 1}.get(verb, 0)
    reply = talk.ask({"id": 1, "verb": verb, "args": args}, [os.open(os.devnull, os.O_RDWR) for _ in range(wanted)])
    assert reply["fault"]["reason"] == "box_died"


def test_a_box_that_is_gone_is_killed_by_saying_nothing(talk: Talk) -> None:
    assert talk.ask({"id": 1, "verb": "kill", "args": {"task": TASK, "reason": "wall"}}, [])["ok"] == {}


def test_no_more_boxes_than_configured(talk: Talk) -> None:
    reply = talk.ask({"id": 1, "verb": "make", "args": {"task": TASK, "frame": frame()}}, [])
    assert reply["deny"]["reason"] == "busy"


@pytest.mark.parametrize("sent", [b"x", b"[]", b"{", b"\xff", b'"a"', b"[" * 100_000])
def test_what_is_no_message_ends_the_connection(sent: bytes) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        ours.send(sent)
        with pytest.raises(wire.WireError):
            wire.receive(theirs)


def test_streams_that_are_no_pipes_are_refused(tmp_path: Path) -> None:
    from fumehood.broker import box

    (tmp_path / "file").write_text("root's")
    os.mkfifo(tmp_path / "fifo")
    ours, theirs = socket.socketpair()
    openers: dict[str, Callable[[], int]] = {
        "file": lambda: os.open(tmp_path / "file", os.O_RDONLY),
        "fifo": lambda: os.open(tmp_path / "fifo", os.O_RDWR),
        "folder": lambda: os.open(tmp_path, os.O_RDONLY),
        "zero": lambda: os.open("/dev/zero", os.O_RDONLY),
        "path": lambda: os.open(tmp_path / "file", os.O_PATH),
        "memory": lambda: os.memfd_create("x"),
        "socket": lambda: os.dup(ours.fileno()),
    }
    with ours, theirs, closing_all() as opened:
        for opener in openers.values():
            opened.append(opener())
            with pytest.raises(Refused):
                box._is_pipe(opened[-1])
        opened.extend([*os.pipe(), os.open(os.devnull, os.O_RDONLY)])
        assert [box._is_pipe(fd) for fd in opened[-3:]] == [True, True, False]


@contextmanager
def closing_all() -> Iterator[list[int]]:
    opened: list[int] = []
    try:
        yield opened
    finally:
        wire.close_all(opened)


PLACE = {"v4": "198.18.0.2", "v6": "fd53::2", "port": 443}
ANYWHERE = {"v4": None, "v6": None, "port": 443}


def test_listeners_arrive_as_they_were_asked_for() -> None:
    listens = requests.listens_of({"listen": [PLACE, {**ANYWHERE, "port": 80}]})
    assert [(each.v4, each.v6, each.port) for each in listens] == [("198.18.0.2", "fd53::2", 443), (None, None, 80)]
    assert requests.listens_of({"listen": []}) == ()


@pytest.mark.parametrize(
    "listen",
    [
        None, {}, [None], [{}], [{**PLACE, "port": 0}], [{**PLACE, "port": 65536}], [{**PLACE, "port": True}], [{**PLACE, "port": "443"}],
        [{**PLACE, "port": 53}], [{**ANYWHERE, "port": 53}], [{**PLACE, "v4": None}], [{**PLACE, "v6": None}], [{**PLACE, "v4": "127.0.0.1"}],
        [{**PLACE, "v4": "198.17.255.255"}], [{**PLACE, "v4": "198.20.0.0"}], [{**PLACE, "v4": "198.18.2"}], [{**PLACE, "v4": "fd53::2"}],
        [{**PLACE, "v4": 3323068418}], [{**PLACE, "v4": "198.18.0.2\0"}], [{**PLACE, "v6": "::1"}], [{**PLACE, "v6": "fd53:0:1::2"}],
        [{**PLACE, "v6": "FD53::2"}], [{**PLACE, "v6": "fd53::2%lo"}], [{**PLACE, "v6": "::ffff:198.18.0.2"}], [PLACE, PLACE],
        [PLACE, {**PLACE, "v6": "fd53::3"}], [PLACE, ANYWHERE], [ANYWHERE, ANYWHERE], [{**ANYWHERE, "port": port} for port in range(100, 161)],
    ],
)  # fmt: skip
def test_a_gate_that_is_not_one_is_refused(listen: object) -> None:
    with pytest.raises(Refused) as refused:
        requests.listens_of({"listen": listen})
    assert refused.value.reason is Reason.BAD_REQUEST


def file(name: str = "secrets/key", size_bytes: object = 3, over: object = None) -> dict[str, object]:
    return {"name": name, "size_bytes": size_bytes, "over": over}


def test_files_arrive_as_they_were_told() -> None:
    (told,) = requests.files_of({"files": [file("fumehood/ca.pem", 7, "/etc/ssl/cert.pem")]})
    assert (told.name, told.size_bytes, told.over) == ("fumehood/ca.pem", 7, "/etc/ssl/cert.pem")
    assert requests.files_of({}) == ()


@pytest.mark.parametrize(
    "files",
    [
        None, {}, [None], [file("key")], [file("secrets/")], [file("secrets/../x")], [file("/run/secrets/x")], [file("secrets/.ssh")],
        [file("secrets//x")], [file("secrets/x\0")], [file("secrets/x\n")], [file("etc/passwd")], [file("secrets/" + "x" * 65)],
        [file("secrets/a/b/c/d/e")], [file(size_bytes=-1)], [file(size_bytes=2**22 + 1)], [file(size_bytes=1.5)],
        [file(over="/etc/passwd")], [file(over="/etc/ssl/../passwd")], [file(over=7)], [file(), file()], [file("secrets/a"), file("secrets/a/b")],
        [file("secrets/a", over="/etc/ssl/cert.pem"), file("secrets/b", over="/etc/ssl/cert.pem")],
        [file("secrets/a", 2**21), file("secrets/b", 2**21), file("secrets/c", 1)], [file(f"secrets/{n}", 0) for n in range(65)],
    ],
)  # fmt: skip
def test_a_file_that_could_land_elsewhere_or_be_too_long_is_refused(files: object) -> None:
    with pytest.raises(Refused) as refused:
        requests.files_of({"files": files})
    assert refused.value.reason is Reason.BAD_REQUEST


@given(values, values)
def test_whatever_is_asked_of_a_network_or_of_files_is_refused_or_well_formed(listen: object, files: object) -> None:
    for ask in (lambda: requests.listens_of({"listen": listen}), lambda: requests.files_of({"files": files})):
        try:
            assert isinstance(ask(), tuple)
        except Refused:
            pass
