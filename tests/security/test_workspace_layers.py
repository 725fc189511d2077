"""What a box, its caller, or a host user beside them could do to the host through a workspace. Real mounts, as root."""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from boxlike import BOX, MIB, OWNER, TASK, Bench, as_uid, in_own_mounts, needs_root, owned, passable, settings_for, tree
from fumehood.broker import applying, mounting, pending
from fumehood.broker.applying import apply, target_of
from fumehood.broker.changes import Change, changes
from fumehood.broker.directory import check_directory
from fumehood.broker.workspace import make_mounts
from fumehood.faults import Refused
from fumehood.model import ReadOnlyMount, WorkspaceMode
from fumehood.reasons import Reason

pytestmark = needs_root

CONNECT = """
s = socket.socket(socket.AF_UNIX)
try:
    s.connect('sock'); print('connected')
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("layers")
    return Bench(passable(folder))


def listen(bench: Bench) -> socket.socket:
    path = bench.source / "sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)
    os.chown(path, OWNER, OWNER)  # the box's own in its view: only the overlay stands between
    path.chmod(0o777)
    return server


WRITE = """
try:
    open('tool.py', 'a')
except OSError as error:
    print(OSError.__name__)
"""


@pytest.mark.parametrize("mode", [WorkspaceMode.RO, WorkspaceMode.RW])
@in_own_mounts
def test_a_host_socket_in_the_workspace_cannot_be_connected(bench: Bench, mode: WorkspaceMode) -> None:
    with listen(bench):
        assert as_uid(OWNER, bench.source, CONNECT) == "connected"
        workspace, view = bench.open(mode)
        assert bench.box(view, CONNECT) == "ConnectionRefusedError"
        bench.end(view)
        workspace.close()


@in_own_mounts
def test_a_host_socket_behind_a_read_only_mount_cannot_be_connected(bench: Bench) -> None:
    with listen(bench):
        wanted = (ReadOnlyMount(source=str(bench.source), name="data"),)
        (mount,) = make_mounts(wanted, box_uid=BOX, folder=bench.folder / "mounts", settings=bench.settings)
        assert mount.place == "/mnt/data"
        view = bench.folder / "view"
        view.mkdir()
        mounting.attach(mount.mount_fd, str(view))
        assert bench.box(view, CONNECT) == "ConnectionRefusedError"
        bench.end(view)
        mount.close()


@in_own_mounts
def test_a_single_file_as_a_mount_shows_neither_its_neighbours_nor_the_file_itself(bench: Bench) -> None:
    file = owned(bench.source / "tool.py", "x = 1")
    owned(bench.source / "secret.env", "key")
    wanted = (ReadOnlyMount(source=str(file), name="source"),)
    settings = replace(bench.settings, mount_roots=(str(file),))
    (mount,) = make_mounts(wanted, box_uid=BOX, folder=bench.folder / "mounts", settings=settings)
    view = bench.folder / "view"
    view.mkdir()
    mounting.attach(mount.mount_fd, str(view))
    assert bench.box(view, "import os; print(os.listdir('.'), open('tool.py').read())") == "['tool.py'] x = 1"
    assert bench.box(view, WRITE) == "OSError"
    file.write_text("changed")
    assert bench.box(view, "print(open('tool.py').read())") == "x = 1"
    bench.end(view)
    mount.close()


@pytest.mark.parametrize("make", ["socket", "fifo"])
@in_own_mounts
def test_direct_is_refused_where_a_socket_or_fifo_lies_deep_inside(bench: Bench, make: str) -> None:
    deep = owned(owned(bench.source / "a") / "b")
    if make == "fifo":
        os.mkfifo(deep / "f")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(deep / "f"))
    with pytest.raises(Refused) as refused:
        bench.open(WorkspaceMode.DIRECT, unlimited=True)
    assert refused.value.reason is Reason.WORKSPACE_NOT_ALLOWED
    assert "a/b/f" in str(refused.value)


@in_own_mounts
def test_direct_with_a_disk_limit_that_nobody_could_hold_is_refused(bench: Bench) -> None:
    with pytest.raises(Refused) as refused:
        bench.open(WorkspaceMode.DIRECT)
    assert refused.value.reason is Reason.UNENFORCEABLE


@in_own_mounts
def test_direct_writes_as_the_directory_owner_and_never_as_the_box(bench: Bench) -> None:
    workspace, view = bench.open(WorkspaceMode.DIRECT, unlimited=True)
    bench.box(view, "open('made', 'w').write('x')")
    bench.end(view)
    workspace.close()
    made = (bench.source / "made").stat()
    assert (made.st_uid, made.st_gid) == (OWNER, OWNER)


@in_own_mounts
def test_a_setuid_file_in_the_workspace_never_reaches_the_host(bench: Bench) -> None:
    settled = bench.after("open('s', 'w').close(); os.chmod('s', 0o4755); open('good', 'w').write('g')")
    assert settled.failed is Reason.COMMIT_REFUSED
    assert "s: setuid" in settled.detail
    assert tree(bench.source) == {}
    assert [file.path for file in settled.files] == ["good"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("open('x', 'w').close(); os.chmod('x', 0o2755)", "setuid"),
        ("os.mkfifo('x')", "fifo"),
        ("socket.socket(socket.AF_UNIX).bind('x')", "socket"),
        ("os.symlink('/etc/passwd', 'x')", "absolute"),
        ("os.symlink('../../etc/passwd', 'x')", "out of the workspace"),
        ("os.mkdir('d'); os.symlink('../../x', 'd/x')", "out of the workspace"),
        ("os.makedirs('a/b'); os.symlink('../..', 'a/b/up'); os.symlink('a/b/up/../etc', 'x')", "climbs after a name"),
        ("os.makedirs('/'.join(['d'] * 70))", "deeper"),
        ("f = open('x', 'wb'); f.truncate(10**12)", "larger"),
        ("open('0', 'wb').write(bytes(8 * 2**20))\nfor n in range(1, 9): os.link('0', str(n))", "larger"),
    ],
)
@in_own_mounts
def test_what_could_harm_the_host_refuses_the_whole_set(bench: Bench, program: str, why: str) -> None:
    owned(bench.source / "kept", "before")
    settled = bench.after("open('kept', 'w').write('after')\n" + program)
    assert settled.failed is Reason.COMMIT_REFUSED
    assert why in settled.detail
    assert (bench.source / "kept").read_text() == "before"
    assert not [name for name in tree(bench.source) if name != "kept"]


@in_own_mounts
def test_nothing_is_written_to_the_host_before_the_commit_and_nothing_after_a_discard(bench: Bench) -> None:
    owned(bench.source / "f", "before")
    workspace, view = bench.open()
    bench.box(view, "open('f', 'w').write('after'); open('g', 'w').close(); os.mkdir('d')")
    assert tree(bench.source) == {"f": ("file", 0o644, "before")}
    bench.end(view)
    bench.settle(workspace, "discard")
    assert tree(bench.source) == {"f": ("file", 0o644, "before")}
    assert list(bench.settings.state.pending.iterdir()) == []


@in_own_mounts
def test_the_disk_limit_holds_for_bytes_and_for_empty_files(bench: Bench) -> None:
    fill = """
def full(step):
    try:
        for number in range(200000): step(number)
    except OSError as error:
        print(error.errno)
big = open('big', 'wb', buffering=0)
full(lambda number: big.write(bytes(1 << 20)))
os.unlink('big'); big.close()
full(lambda number: os.close(os.open(f'e{number}', os.O_CREAT)))
"""
    for mode in (WorkspaceMode.RW, WorkspaceMode.SCRATCH):
        workspace, view = bench.open(mode, disk_bytes=MIB)
        assert bench.box(view, fill).split() == ["28", "28"]
        bench.end(view)
        workspace.close()


@in_own_mounts
def test_another_users_private_files_are_as_closed_to_the_box_as_to_its_caller(bench: Bench) -> None:
    owned(bench.source / "roots", "secret", uid=0, mode=0o600)
    owned(bench.source / "groups", "secret", uid=0, mode=0o640)
    os.chown(bench.source, OWNER, 7777)  # the directory's group, of which its owner is no member
    os.chown(bench.source / "groups", 0, 7777)
    owned(bench.source / "own", "mine", mode=0o600)
    os.chown(bench.source / "own", OWNER, 8888)
    read = """
for name in ('roots', 'groups', 'own'):
    try: print(open(name).read())
    except OSError as error: print(type(error).__name__)
"""
    for mode in (WorkspaceMode.RO, WorkspaceMode.RW, WorkspaceMode.DIRECT):
        workspace, view = bench.open(mode, unlimited=True)
        assert bench.box(view, read).split() == ["PermissionError", "PermissionError", "mine"]
        bench.end(view)
        workspace.close()


@in_own_mounts
def test_a_caller_that_does_not_own_a_directory_gets_no_more_of_it_through_ro(bench: Bench) -> None:
    os.chown(bench.source, 0, 0)
    owned(bench.source / "roots", "secret", uid=0, mode=0o600)
    owned(bench.source / "all", "told", uid=0, mode=0o644)
    workspace, view = bench.open(WorkspaceMode.RO)
    assert bench.box(view, "print(open('all').read(), os.access('roots', os.R_OK))") == "told False"
    bench.end(view)
    workspace.close()


@in_own_mounts
def test_a_whiteout_made_by_hand_deletes_nothing(bench: Bench) -> None:
    owned(bench.source / "f", "kept")
    said = "try: os.mknod('w', stat.S_IFCHR, 0); print('made')\nexcept OSError: print('refused')"
    workspace, view = bench.open()
    assert bench.box(view, said) == "refused"
    bench.end(view)
    assert bench.settle(workspace).files == ()


@pytest.mark.parametrize(
    "program",
    [
        "os.makedirs('.git/hooks', exist_ok=True); open('.git/hooks/pre-commit', 'w').write('evil')",
        "os.makedirs('deep/in/.git'); open('deep/in/.git/config', 'w').write('[core] fsmonitor=evil')",
        "import shutil; shutil.rmtree('.git'); os.mkdir('.git'); open('.git/HEAD', 'w').close()",
        "import shutil; shutil.rmtree('.git'); open('.git', 'w').write('gitdir: other')",
        "import shutil; shutil.rmtree('.git'); os.symlink('other', '.git')",
        "import shutil; shutil.rmtree('sub')",
        "open('.envrc', 'w').write('evil')",
        "os.makedirs('.VSCode'); open('.VSCode/tasks.json', 'w').close()",
    ],
)
@in_own_mounts
def test_a_protected_path_holds_the_whole_set(bench: Bench, program: str) -> None:
    for repository in (bench.source, owned(bench.source / "sub")):
        owned(owned(owned(repository / ".git") / "hooks") / "sample", "")
        owned(repository / ".git/config", "")
    before = tree(bench.source)
    settled = bench.after(
        program + "\nopen('harmless', 'w').close()", protect=(".git/hooks", ".git/config", ".envrc", ".vscode")
    )
    assert settled.pending
    assert settled.failed is None
    assert settled.detail.startswith("protected: ")
    assert tree(bench.source) == before


@in_own_mounts
def test_committed_files_belong_to_the_owner_and_what_was_given_is_not_chowned(bench: Bench) -> None:
    owned(bench.source / "given", "x", uid=0)
    owned(bench.source / "changed", "x")
    settled = bench.after(
        "open('new', 'w').close(); os.mkdir('d'); open('d/f', 'w').close(); open('changed', 'a').write('y')"
    )
    assert settled.failed is None, settled.detail
    assert (bench.source / "given").stat().st_uid == 0
    for name in ("new", "d", "d/f", "changed"):
        found = (bench.source / name).stat()
        assert (found.st_uid, found.st_gid) == (OWNER, OWNER)


def test_a_symlink_put_in_the_way_on_the_host_does_not_lead_the_committer_out(bench: Bench) -> None:
    outside = owned(bench.folder / "outside")
    (bench.source / "d").symlink_to(outside)
    steps = [Change(op="file", path="d/f", kind="added", mode=0o644), Change(op="remove", path="d/x", kind="deleted")]
    owned(outside / "x", "precious")
    empty = bench.folder / "empty"
    empty.touch()
    directory = os.open(bench.source, os.O_RDONLY)
    try:
        for step in steps:
            with pytest.raises(applying.NotAppliedError, match="symbolic links"):
                apply(target_of(directory), [step], lambda _: os.open(empty, os.O_RDONLY))
        for path in ("../out", "/tmp/fumehood-out", "a/../../out"):
            with pytest.raises(applying.NotAppliedError):
                apply(target_of(directory), [Change(op="symlink", path=path, kind="symlink", target="x")], os.dup)
    finally:
        os.close(directory)
    assert tree(outside) == {"x": ("file", 0o644, "precious")}
    assert not (bench.folder / "out").is_symlink()


@in_own_mounts
def test_a_directory_swapped_for_a_symlink_over_and_over_never_leads_the_committer_out(bench: Bench) -> None:
    outside = owned(bench.folder / "outside")
    owned(bench.source / "d")
    done = threading.Event()

    def swap() -> None:
        real, link = bench.source / "d", bench.source / "e"
        while not done.is_set():
            real.rename(link)
            real.symlink_to(outside)
            real.unlink()
            link.rename(real)

    swapping = threading.Thread(target=swap)
    swapping.start()
    directory = os.open(bench.source, os.O_RDONLY)
    empty = bench.folder / "empty"
    empty.touch()
    try:
        for number in range(15):
            step = Change(op="file", path=f"d/f{number}", kind="added", mode=0o644)
            try:
                apply(target_of(directory), [step], lambda _: os.open(empty, os.O_RDONLY))
            except applying.NotAppliedError:
                continue
    finally:
        done.set()
        swapping.join(10)
        os.close(directory)
    assert list(outside.iterdir()) == []


def test_the_committer_is_nobody_but_the_owner(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(applying.__file__).with_name("committer.py").read_text()
    spy = bench.folder / "spy.py"
    spy.write_text(
        program.replace(
            "    answer = commit(root, 0)", "    answer = {'ok': True, 'left': [open('/proc/self/status').read()]}"
        )
    )
    monkeypatch.setattr(applying, "_PROGRAM", spy)
    for uid in (OWNER, 0):
        os.chown(bench.source, uid, uid)
        directory = os.open(bench.source, os.O_RDONLY)
        try:
            (status,) = apply(target_of(directory), [], os.dup)
        finally:
            os.close(directory)
        told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert told["Uid"].split() == [str(uid)] * 4
        assert told["Gid"].split() == [str(uid)] * 4
        assert told["Groups"].split() == []
        assert {told[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert told["NoNewPrivs"] == "1"


def test_the_committer_cannot_write_what_the_owner_cannot(bench: Bench) -> None:
    locked = owned(bench.source / "roots", uid=0)
    directory = os.open(bench.source, os.O_RDONLY)
    empty = bench.folder / "empty"
    empty.touch()
    try:
        with pytest.raises(applying.NotAppliedError, match="Permission denied"):
            apply(
                target_of(directory),
                [Change(op="file", path="roots/f", kind="added", mode=0o644)],
                lambda _: os.open(empty, os.O_RDONLY),
            )
    finally:
        os.close(directory)
    assert list(locked.iterdir()) == []


@in_own_mounts
def test_a_commit_that_fails_in_the_middle_changes_nothing_and_loses_nothing(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        owned(bench.source / name, "before")
    closed = owned(bench.source / "z", uid=OWNER)
    before = tree(bench.source)
    workspace, view = bench.open()
    bench.box(view, "for n in 'abc': open(n, 'w').write('after')\nos.mkdir('new'); open('z/f', 'w').write('last')")
    bench.end(view)
    os.chown(closed, 0, 0)  # the host takes the last directory away
    settled = bench.settle(workspace)
    assert settled.failed is Reason.COMMIT_FAILED
    assert settled.pending
    assert tree(bench.source) == before
    os.chown(closed, OWNER, OWNER)
    reply, _ = pending.pending_commit(bench.settings.state, OWNER, {"task": TASK})
    assert reply["left"] == []
    assert (bench.source / "a").read_text() == "after"
    assert (bench.source / "z/f").read_text() == "last"
    assert list(bench.settings.state.pending.iterdir()) == []


@in_own_mounts
def test_a_commit_that_fails_at_its_last_step_takes_every_other_back(bench: Bench) -> None:
    for name in ("a", "b", "gone"):
        owned(bench.source / name, "before")
    owned(bench.source / "z")
    before = tree(bench.source)
    workspace, view = bench.open()
    bench.box(
        view,
        "open('a', 'w').write('x'); os.unlink('b'); os.mkdir('b'); os.mkdir('new'); os.unlink('gone'); os.rmdir('z')",
    )
    bench.end(view)
    last = os.open(bench.source / "z", os.O_RDONLY)
    mounting.attach(mounting.clone_mount(last), str(bench.source / "z"))  # a mount point cannot be renamed
    os.close(last)
    settled = bench.settle(workspace)
    bench.end(bench.source / "z")
    assert settled.failed is Reason.COMMIT_FAILED
    assert settled.detail == "z: Device or resource busy"
    assert settled.pending
    assert tree(bench.source) == before


@in_own_mounts
def test_what_the_host_changed_meanwhile_is_not_overwritten(bench: Bench) -> None:
    owned(bench.source / "f", "before")
    workspace, view = bench.open()
    bench.box(view, "open('f', 'w').write('tool'); open('g', 'w').write('tool')")
    bench.end(view)
    owned(bench.source / "f", "person")
    settled = bench.settle(workspace)
    assert settled.failed is Reason.COMMIT_FAILED
    assert "f: changed on the host" in settled.detail
    assert settled.pending
    assert tree(bench.source) == {"f": ("file", 0o644, "person")}


@in_own_mounts
def test_another_users_pending_changes_can_be_neither_seen_nor_touched(bench: Bench) -> None:
    assert bench.after("open('f', 'w').write('x')", action="hold").pending
    state = bench.settings.state
    assert pending.pending_list(state, OWNER + 1, {})[0]["sets"] == []
    for verb in pending.VERBS.values():
        if verb is not pending.pending_list:
            with pytest.raises(Refused):
                verb(state, OWNER + 1, {"task": TASK, "index": 0})
    for task in ("../../etc", "", "x" * 26 + "/", None, 7, "." + "0" * 25):
        with pytest.raises(Refused):
            pending.pending_discard(state, 0, {"task": task})
    assert state.pending.stat().st_mode & 0o077 == 0
    assert pending.pending_list(state, OWNER, {})[0]["sets"][0]["task"] == TASK


@in_own_mounts
def test_a_file_its_owner_cannot_read_is_not_shown_as_the_old_content_of_a_diff(bench: Bench) -> None:
    owned(bench.source / "roots", "secret", uid=0, mode=0o600)
    owned(bench.source / "own", "old", mode=0o600)
    bench.after("open('roots2', 'w').write('x'); open('own', 'w').write('new')", action="hold")
    # The overlay does not let a box replace another's file, but the host can put one there later.
    (bench.source / "roots").rename(bench.source / "roots2")
    page, _ = pending.pending_list(bench.settings.state, OWNER, {"task": TASK})
    assert [step["path"] for step in page["changes"]] == ["own", "roots2"]
    told, fds = pending.pending_open(bench.settings.state, OWNER, {"task": TASK, "index": 0})
    assert told == {"new": True, "old": True}
    assert [os.read(fd, 10) for fd in fds] == [b"new", b"old"]
    told, others = pending.pending_open(bench.settings.state, OWNER, {"task": TASK, "index": 1})
    assert told == {"new": True, "old": False}
    for fd in (*fds, *others):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
        os.close(fd)


@in_own_mounts
def test_pending_changes_are_not_committed_to_another_directory_of_the_same_name(bench: Bench) -> None:
    bench.after("open('f', 'w').write('x')", action="hold")
    bench.source.rename(bench.folder / "moved")
    owned(bench.source)
    with pytest.raises(Refused):
        pending.pending_commit(bench.settings.state, OWNER, {"task": TASK})
    assert list(bench.source.iterdir()) == []
    reply, _ = pending.pending_discard(bench.settings.state, OWNER, {"task": TASK})
    assert reply["discarded"] == 1


@in_own_mounts
def test_closing_leaves_no_mount_behind_and_may_be_repeated(bench: Bench) -> None:
    before = Path("/proc/thread-self/mountinfo").read_text().count("\n")
    for mode in (WorkspaceMode.RW, WorkspaceMode.RO, WorkspaceMode.SCRATCH):
        workspace, view = bench.open(mode)
        bench.end(view)
        workspace.close()
        workspace.close()
        assert list(workspace.folder.iterdir()) == []
    assert Path("/proc/thread-self/mountinfo").read_text().count("\n") == before


@in_own_mounts
def test_mounts_of_a_workspace_are_nosuid_and_nodev(bench: Bench) -> None:
    for mode in (WorkspaceMode.RW, WorkspaceMode.RO, WorkspaceMode.SCRATCH, WorkspaceMode.DIRECT):
        workspace, view = bench.open(mode, unlimited=True)
        (line,) = (line for line in Path("/proc/thread-self/mountinfo").read_text().splitlines() if f" {view} " in line)
        options = set(line.split()[5].split(","))
        assert {"nosuid", "nodev"} <= options
        assert ("ro" in options) is (mode is WorkspaceMode.RO)
        bench.end(view)
        workspace.close()


def refusal(bench: Bench, path: Path, mode: WorkspaceMode = WorkspaceMode.RO, flags: int = 0, **changed: object) -> str:
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        ours = check_directory(fd, settings_for(bench.folder, **changed), mode)
    except Refused as refused:
        return f"{refused.reason.value}: {refused.detail}" if refused.reason is Reason.WORKSPACE_NOT_ALLOWED else "?"
    finally:
        os.close(fd)
    os.close(ours)
    return ""


def test_a_caller_cannot_lend_what_is_not_its_own(bench: Bench) -> None:
    other = owned(bench.folder / "other", uid=OWNER + 1)
    assert refusal(bench, other) == ""
    for mode in (WorkspaceMode.RW, WorkspaceMode.DIRECT):
        assert "belongs to uid" in refusal(bench, other, mode)
        assert refusal(bench, other, mode, caller_uid=0) == ""
        assert refusal(bench, bench.source, mode) == ""


def test_directories_of_the_host_itself_are_never_given(bench: Bench) -> None:
    for path in ("/", "/proc", "/proc/self/fd", "/sys", "/dev", "/dev/shm"):
        assert refusal(bench, Path(path), caller_uid=0)
    state = bench.settings.state
    for folder in (state.root, state.pending, bench.folder):
        assert "state folder" in refusal(bench, folder, caller_uid=0)


def test_only_directories_below_an_allowed_root_are_given(bench: Bench) -> None:
    roots = (str(bench.source),)
    assert refusal(bench, owned(bench.source / "in"), workspace_roots=roots) == ""
    assert "allowed roots" in refusal(bench, owned(bench.folder / "source2"), workspace_roots=roots)
    (bench.source / "link").symlink_to(bench.folder / "source2")
    assert "allowed roots" in refusal(bench, bench.source / "link", workspace_roots=roots)
    assert "allowed roots" in refusal(bench, bench.source, workspace_roots=())


def test_a_descriptor_that_proves_no_right_to_read_is_refused(bench: Bench) -> None:
    assert "not opened for reading" in refusal(bench, bench.source, flags=os.O_PATH)
    assert "not a directory" in refusal(bench, owned(bench.source / "f", ""))


@in_own_mounts
def test_a_path_that_is_true_only_in_the_callers_own_namespace_is_refused(bench: Bench) -> None:
    there = owned(bench.source / "there")
    etc = os.open("/etc", os.O_RDONLY)
    mounting.attach(mounting.clone_mount(etc), str(there))
    shown = os.open(there, os.O_RDONLY)  # its path is .../there, its content /etc
    mounting.detach(str(there))
    try:
        with pytest.raises(Refused):
            check_directory(shown, bench.settings, WorkspaceMode.RO)
    finally:
        os.close(shown)
        os.close(etc)


@in_own_mounts
def test_what_is_hidden_under_a_mount_is_not_uncovered(bench: Bench) -> None:
    covered = owned(bench.source / "with space")
    owned(covered / "secret", "x")
    mounting.attach(mounting.make_filesystem("tmpfs", [("size", "4096")], 0), str(covered))
    assert "with space" in refusal(bench, bench.source)
    mounting.detach(str(covered))


@in_own_mounts
def test_a_scratch_with_odd_things_in_it_is_listed_and_reaches_nothing(bench: Bench) -> None:
    workspace, view = bench.open(WorkspaceMode.SCRATCH)
    bench.box(view, "os.mkfifo('p'); open('out', 'w').write('x'); os.symlink('/etc', 'l')")
    bench.end(view)
    settled = bench.settle(workspace)
    assert [(file.path, file.kind, file.size_bytes) for file in settled.files] == [("out", "added", 1)]
    assert settled.failed is None
    assert tree(bench.source) == {}


@in_own_mounts
def test_names_that_are_no_text_survive_commit_and_manifest(bench: Bench) -> None:
    name = b"\xff\xfe \n\x1b[31m"
    program = f"fd = os.open({name!r}, os.O_CREAT | os.O_WRONLY); os.write(fd, b'x')"
    workspace, view = bench.open()
    bench.box(view, program)
    bench.end(view)
    assert workspace.upper_fd is not None
    found = changes(workspace.upper_fd, workspace.base_fd, most_bytes=MIB)
    json.dumps([file.path for file in found.files])
    assert bench.settle(workspace, "hold").pending
    pending.pending_commit(bench.settings.state, OWNER, {"task": TASK})
    assert [os.fsencode(path.name) for path in bench.source.iterdir()] == [name]
