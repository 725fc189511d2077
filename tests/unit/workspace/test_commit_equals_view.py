"""Whatever a box does to its view, a commit makes the directory equal to what the box saw at its end."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from boxlike import BOX, OWNER, Bench, as_uid, in_own_mounts, needs_root, passable, tree

pytestmark = needs_root

NAMES = st.sampled_from(["a", "b", "c", "é"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o500, 0o400, 0o700, 0o000, 0o777])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), PATHS, st.text("xyz", max_size=3)),
        st.tuples(st.just("folder"), PATHS, st.just("")),
        st.tuples(st.just("remove"), PATHS, st.just("")),
        st.tuples(st.just("rename"), PATHS, PATHS),
        st.tuples(st.just("link"), PATHS, PATHS),
        st.tuples(st.just("symlink"), PATHS, NAMES),
        st.tuples(st.just("mode"), PATHS, MODES),
        st.tuples(st.just("touch"), PATHS, st.integers(0, 2**40)),
    ),
    max_size=12,
)

PROGRAM = """
import shutil
def unlock(path):
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, 0o700)
        for name in os.listdir(path): unlock(os.path.join(path, name))
def remove(path, _):
    unlock(path)
    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
def write(path, text):
    with open(path, 'a') as file: file.write(text)
do = {'write': write, 'folder': lambda path, _: os.mkdir(path), 'remove': remove, 'mode': os.chmod,
      'rename': lambda old, new: shutil.move(old, new), 'link': os.link,
      'symlink': lambda path, to: os.symlink(to, path),
      'touch': lambda path, ns: os.utime(path, ns=(ns, ns), follow_symlinks=False)}
for step, path, other in STEPS:
    try: do[step](path, other)
    except (OSError, shutil.Error): pass
"""


def times(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.lstat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@in_own_mounts
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, STEPS)
@example([("folder", "a", ""), ("write", "a/b", "x")], [("remove", "a", ""), ("write", "a", "x")])
@example(
    [("folder", "a", ""), ("write", "a/b", "x")], [("remove", "a", ""), ("folder", "a", ""), ("write", "a/c", "x")]
)
@example([("folder", "a", ""), ("folder", "a/b", "")], [("rename", "a", "b"), ("symlink", "a", "b")])
@example(
    [("folder", "a", ""), ("mode", "a", 0o500)], [("mode", "a", 0o700), ("write", "a/b", "x"), ("mode", "a", 0o500)]
)
@example([("write", "a", "x")], [("remove", "a", ""), ("folder", "a", ""), ("folder", "a/b", ""), ("mode", "a", 0o000)])
@example([("write", "a", "x"), ("link", "a", "b")], [("write", "a", "y"), ("link", "a", "c")])
@example([("folder", "a", ""), ("write", "a/b", "x"), ("mode", "a/b", 0)], [("mode", "a", 0o500), ("remove", "a", "")])
def test_a_committed_directory_equals_what_the_box_saw(given_steps: list[Any], steps: list[Any]) -> None:
    folder = passable(Path(tempfile.mkdtemp(prefix="fumehood-view-")))
    try:
        bench = Bench(folder)
        as_uid(OWNER, bench.source, PROGRAM.replace("STEPS", repr(given_steps)))
        given_tree = tree(bench.source)
        workspace, view = bench.open()
        as_uid(BOX, view, PROGRAM.replace("STEPS", repr(steps)))
        seen, seen_times = tree(view), times(view)
        assert tree(bench.source) == given_tree
        bench.end(view)
        settled = bench.settle(workspace)
        assert settled.failed is None, settled.detail
        assert not settled.detail
        assert tree(bench.source) == seen
        assert times(bench.source) == seen_times
    finally:
        shutil.rmtree(folder)
