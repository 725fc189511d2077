"""The program inside the box, run here by the interpreter alone: what it says of a function, whatever the function does."""

from __future__ import annotations

import dataclasses
import enum
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.delegate import runner
from fumehood.delegate.runner import UnfitError, build, plain

TOKEN = "f" * 32
HEAD = """
import asyncio, dataclasses, enum, logging, os, sys, threading
from typing import *
from fumehood import boxed
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
log = logging.getLogger(__name__)
class Colour(enum.Enum):
    RED = "red"
class Shape(TypedDict):
    name: str
    at: NotRequired["Point"]
@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0
"""


def run(tmp_path: Path, text: str, arguments: dict[str, Any] | None = None, **changed: Any) -> tuple[list[dict[str, Any]], str]:
    """What the runner wrote for a call of `f`, without the token, and its stderr."""
    (tmp_path / "tool.py").write_text(HEAD + text)
    call = {
        "token": TOKEN, "module": "tool", "function": "f", "top": "tool", "folder": str(tmp_path), "arguments": arguments or {},
        "context": [], "level": 20, "result_bytes": 2**20, "image": "python", **changed,
    }  # fmt: skip
    done = subprocess.run(
        # No site: what is installed beside our tests is not in an image.
        [sys.executable, "-I", "-S", "-B", "-c", Path(runner.__file__).read_text()], input=json.dumps(call) + "\n", capture_output=True,
        text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    frames = [json.loads(line) for line in done.stdout.splitlines()]
    assert [frame.pop("token") for frame in frames] == [TOKEN] * len(frames)
    return frames, done.stderr


def last(tmp_path: Path, text: str, arguments: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    frames, _ = run(tmp_path, text, arguments, **changed)
    return frames[-1]


def test_arguments_arrive_as_the_annotated_types(tmp_path: Path) -> None:
    text = """
@boxed
def f(p: Point, many: list[Point] | None, c: Colour, t: tuple[int, str], s: set[int], d: dict[str, Point], n: float, h: Shape, u: int | Point):
    return [type(one).__name__ for one in (p, many[0], c, t, s, d["a"], n, h["at"], u)]
"""
    point = {"x": 1, "y": 2.0}
    arguments = {
        "p": point, "many": [point], "c": "red", "t": [1, "a"], "s": [1], "d": {"a": point}, "n": 1, "h": {"name": "a", "at": point}, "u": point,
    }  # fmt: skip
    expected = ["Point", "Point", "Colour", "tuple", "set", "Point", "float", "Point", "Point"]
    assert last(tmp_path, text, arguments) == {"kind": "result", "value": expected}


def test_an_async_function_reports_progress_and_messages(tmp_path: Path) -> None:
    text = """
@boxed(profile="x")
async def f(ctx: Context) -> int:
    await asyncio.sleep(0)
    await ctx.report_progress(1, 2, "half")
    await ctx.info("told")
    log.warning("logged %d", 5)
    log.debug("unwanted")
    return 1
"""
    frames, _ = run(tmp_path, text, context=["ctx"])
    assert frames == [
        {"kind": "progress", "progress": 1, "total": 2, "message": "half"},
        {"kind": "said", "level": "info", "message": "told"},
        {"kind": "log", "logger": "tool", "level": 30, "message": "logged 5"},
        {"kind": "result", "value": 1},
    ]


def test_a_plain_function_may_leave_out_the_await(tmp_path: Path) -> None:
    frames, errors = run(tmp_path, "def f(ctx: Context):\n    ctx.report_progress(1)\n    ctx.error('x')", context=["ctx"])
    assert [frame["kind"] for frame in frames] == ["progress", "said", "result"]
    assert "never awaited" not in errors


def test_what_a_function_prints_goes_to_its_stderr(tmp_path: Path) -> None:
    frames, errors = run(tmp_path, "def f():\n    print('a'); os.write(1, b'b'); os.system('echo c'); return sys.stdin.read()")
    assert frames == [{"kind": "result", "value": ""}]
    assert sorted(errors.replace("\n", "")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import numpy\ndef f(): ...", "the image python has no `numpy`"),
        ("from pydantic.fields import Field\ndef f(): ...", "the image python has no `pydantic`"),
        ("from mcp.server.mcpserver import MCPServer\ndef f(): ...", "`mcp` is a stand-in"),
        ("from mcp.client import x\ndef f(): ...", "`mcp` is a stand-in"),
        ("from fumehood import Runtime\ndef f(): ...", "`fumehood` is a stand-in"),
        ("f = 3", "no function"),
        ("g = 3", "has no attribute 'f'"),
    ],
)
def test_a_module_that_the_image_cannot_import_is_named_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    frame = last(tmp_path, text)
    assert frame["kind"] == "unloadable"
    assert words in frame["message"]
    assert "\n" not in frame["message"]


def test_exceptions_are_told_with_their_place_and_without_ours(tmp_path: Path) -> None:
    frame = last(tmp_path, "def f():\n    raise ToolError('no')")
    assert (frame["kind"], frame["type"], frame["message"]) == ("raised", ["mcp.server.mcpserver.exceptions", "ToolError"], "no")
    assert "tool.py" in frame["traceback"]
    assert "<string>" not in frame["traceback"]
    assert last(tmp_path, "def f():\n    sys.exit(3)")["type"] == ["builtins", "SystemExit"]
    assert last(tmp_path, "async def f():\n    raise KeyError('k')")["type"] == ["builtins", "KeyError"]
    assert len(last(tmp_path, "def f():\n    raise ValueError('x' * 10**6)")["message"]) == runner.TEXT_CHARS


def test_threads_and_exit_handlers_do_not_hold_the_answer(tmp_path: Path) -> None:
    text = "import atexit, time\ndef f():\n    threading.Thread(target=time.sleep, args=(20,)).start(); atexit.register(time.sleep, 20); return 1"
    assert last(tmp_path, text) == {"kind": "result", "value": 1}


def test_a_result_over_the_limit_is_counted_and_not_sent(tmp_path: Path) -> None:
    assert last(tmp_path, "def f():\n    return 'x' * 100", result_bytes=101) == {"kind": "oversize", "bytes": 102}


@dataclasses.dataclass
class Point:
    x: int
    label: str


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


Shape = TypedDict("Shape", {"name": str, "at": Point})  # noqa: UP013 - fields from outside
_points = st.builds(Point, st.integers(), st.text())
CASES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (Point, _points),
    (list[Point], st.lists(_points)),
    (dict[str, Point], st.dictionaries(st.text(), _points)),
    (tuple[int, Point], st.tuples(st.integers(), _points)),
    (tuple[Point, ...], st.lists(_points).map(tuple)),
    (set[int], st.sets(st.integers())),
    (Colour, st.sampled_from(Colour)),
    (Point | Colour | None, st.one_of(_points, st.sampled_from(Colour), st.none())),
    (int | str | list[Point], st.one_of(st.integers(), st.text(), st.lists(_points))),
    (Annotated[float, "x"], st.floats(allow_nan=False, allow_infinity=False)),
    (Literal["a", 3], st.sampled_from(["a", 3])),
    (Shape, st.fixed_dictionaries({"name": st.text(), "at": _points})),
]


@given(st.data())
def test_a_value_that_travels_is_the_same_when_it_arrives(data: st.DataObject) -> None:
    hint, values = data.draw(st.sampled_from(CASES))
    value = data.draw(values)
    arrived = build(hint, json.loads(json.dumps(plain(value))))
    assert arrived == value
    assert type(arrived) is type(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"x", {1: 2}, 1j, Point, [[object()]]])
def test_what_json_does_not_carry_is_refused(value: object) -> None:
    with pytest.raises(UnfitError):
        plain(value)


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(UnfitError):
        plain(value)
