"""The decorator: what can be handed over, what is refused where it stands, and that an SDK sees what it saw before."""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

import fumehood
from fumehood.delegate import runtime
from fumehood.delegate.source import source_of
from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

Load = Callable[..., ModuleType]
_numbers = itertools.count()
HEAD = """
from __future__ import annotations
import dataclasses, enum, datetime, decimal, pathlib, typing, uuid
from typing import *
from fumehood import boxed
from pydantic import BaseModel, Field
class Colour(enum.Enum):
    RED = "red"
class Odd(enum.Enum):
    PAIR = (1, 2)
class Shape(TypedDict):
    name: str
    sides: NotRequired[int]
@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0
@dataclasses.dataclass
class Tree:
    children: list[Tree]
@dataclasses.dataclass
class Dated:
    when: datetime.date
class Model(BaseModel):
    x: int
class Plain:
    pass
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import a module of this text, as a file of its own or as a package's."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(runtime, "handed", [])
    names: list[str] = []

    def make(text: str, path: str = "{name}.py") -> ModuleType:
        name = f"handed{next(_numbers)}"
        file = tmp_path / path.format(name=name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(HEAD + text)
        names.append(name)
        importlib.invalidate_caches()
        return importlib.import_module(path.format(name=name).removesuffix(".py").replace("/", ".").removesuffix(".__init__"))

    yield make
    for name in list(sys.modules):
        if name.split(".")[0] in names:
            del sys.modules[name]


def unfit(load: Load, text: str) -> str:
    with pytest.raises(FumehoodError) as refused:
        load(text)
    assert refused.value.reason is Reason.FUNCTION_UNFIT
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "hint",
    [
        "int", "str", "float", "bool", "None", "Any", "list", "dict", "list[int]", "Sequence[str]", "dict[str, list[Point]]", "set[int]",
        "tuple[int, str]", "tuple[float, ...]", "Colour", "Literal['a', 3]", "Shape", "Point", "Tree", "Point | None", "int | str | None",
        "Optional[Colour]", "Annotated[int, Field(gt=0)]", "Point | list[Point]", "Mapping[str, int]", "list[Shape]",
    ],
)  # fmt: skip
def test_types_that_json_carries_can_be_handed_over(load: Load, hint: str) -> None:
    load(f"@boxed\ndef f(a: {hint}) -> {hint}: ...\n")


@pytest.mark.parametrize(
    "hint",
    [
        "bytes", "complex", "datetime.datetime", "decimal.Decimal", "pathlib.Path", "uuid.UUID", "object", "Plain", "Model", "Odd", "Dated",
        "Callable[[], int]", "dict[int, str]", "list[bytes]", "Colour | str", "Point | Shape", "type[int]", "Iterator[int]", "tuple", "set",
        "Literal[b'a']",
    ],
)  # fmt: skip
def test_types_that_would_arrive_as_others_are_refused_at_the_decoration(load: Load, hint: str) -> None:
    assert "parameter `a`" in unfit(load, f"@boxed\ndef f(a: {hint}) -> None: ...\n")
    assert "its result" in unfit(load, f"@boxed\ndef f() -> {hint}: ...\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("f = boxed(lambda a: a)", "lambda or nested"),
        ("def outer():\n    k = 1\n    @boxed\n    def f() -> int:\n        return k\nouter()", "lambda or nested"),
        ("class C:\n    @boxed\n    def f(self) -> int: ...\n", "belongs to a class"),
        ("boxed(len)", "no plain function"),
        ("boxed(Point)", "no plain function"),
        ("@boxed\ndef f(*a: int) -> None: ...", "ordinary parameter"),
        ("@boxed\ndef f(**a: int) -> None: ...", "ordinary parameter"),
        ("@boxed\ndef f(a: int, /) -> None: ...", "ordinary parameter"),
        ("@boxed\ndef f() -> int:\n    yield 1", "generator"),
        ("@boxed\nasync def f() -> int:\n    yield 1", "generator"),
        ("@boxed\ndef f(a: Missing) -> None: ...", "cannot be resolved"),
        ("def f() -> int: ...\nf.__module__ = '__main__'\nboxed(f)", "script itself"),
        ("import os.path\ndef f() -> int: ...\nf.__module__ = 'os.path'\nboxed(f)", "does not come from"),
        ("exec('def f() -> int: ...', globals())\nboxed(f)", "does not come from"),
    ],
)
def test_what_a_box_could_not_import_is_refused_in_one_line(load: Load, text: str, words: str) -> None:
    assert words in unfit(load, text + "\n")


def test_above_the_sdks_decorator_it_would_be_no_box_and_is_refused(load: Load) -> None:
    text = "from mcp.server.mcpserver import MCPServer\nserver = MCPServer('x')\n@boxed\n@server.tool()\ndef f() -> int: ...\n"
    assert "would run it on the host" in unfit(load, text)


@pytest.mark.parametrize("sdk", ["mcp", "fastmcp"])
def test_an_sdk_makes_the_same_tool_of_a_boxed_function(load: Load, sdk: str) -> None:
    pytest.importorskip(sdk)
    head = {"mcp": "from mcp.server.mcpserver import Context\n", "fastmcp": "from fastmcp import Context\n"}[sdk]
    module = load(
        head + "@boxed\ndef f(a: int, p: Point, ctx: Context, s: Literal['a', 'b'] = 'a', n: int | None = None) -> list[Point]:\n"
        "    'Says what it does.'\n"
    )

    # Now: FastMCP writes another one onto what it registers.
    assert inspect.signature(module.f) == inspect.signature(module.f.__wrapped__)

    async def tool(function: Any) -> dict[str, Any]:
        if sdk == "mcp":
            from mcp.server.mcpserver import MCPServer

            server = MCPServer("x")
            server.tool()(function)
            (made,) = await server.list_tools()
            return made.model_dump()
        from fastmcp import Client, FastMCP

        peer = FastMCP("x")
        peer.tool(function)
        async with Client(peer) as client:
            (made,) = await client.list_tools()
        return made.model_dump()

    async def both() -> list[dict[str, Any]]:
        return [await tool(module.f), await tool(module.f.__wrapped__)]

    decorated, plain = anyio.run(both)
    assert decorated == plain
    assert "ctx" not in str(decorated)
    assert inspect.iscoroutinefunction(module.f)
    assert module.f.__doc__ == "Says what it does."


def test_without_an_open_runtime_a_call_says_so_and_runs_nothing(load: Load) -> None:
    module = load("ran = []\n@boxed\ndef f() -> None:\n    ran.append(1)\n")
    with pytest.raises(FumehoodError) as refused:
        anyio.run(module.f)
    assert refused.value.reason is Reason.RUNTIME_CLOSED
    assert module.ran == []


def test_the_source_is_the_module_file_or_the_whole_package_and_never_more(load: Load, tmp_path: Path) -> None:
    single = load("def f() -> int: ...\n")
    assert source_of(single.f).path == f"{tmp_path}/{single.__name__}.py"
    inner = load("def f() -> int: ...\n", "{name}/__init__.py")
    assert source_of(inner.f).path == f"{tmp_path}/{inner.__name__}"
    with pytest.raises(FumehoodError, match="namespace package"):
        source_of(load("def f() -> int: ...\n", "{name}/deep.py").f)


@pytest.mark.parametrize("spoil", ["file", "folder", "inside"])
def test_a_source_that_others_may_write_is_refused(load: Load, spoil: str) -> None:
    module = load("def f() -> int: ...\n", "{name}/__init__.py")
    source = source_of(module.f)
    folder = Path(source.path)
    (folder / "data").mkdir()
    source.check(os.getuid(), None)
    {"file": folder / "__init__.py", "folder": folder, "inside": folder / "data"}[spoil].chmod(0o777)
    with pytest.raises(FumehoodError) as refused:
        source.check(os.getuid(), None)
    assert refused.value.reason is Reason.CONFIG_UNSAFE


def test_a_source_and_a_workspace_do_not_overlap(load: Load, tmp_path: Path) -> None:
    module = load("def f() -> int: ...\n", "{name}/__init__.py")
    source = source_of(module.f)
    link = tmp_path / "link"
    link.symlink_to(source.path)
    for workspace in (tmp_path, Path(source.path), Path(source.path) / "below", link):
        with pytest.raises(FumehoodError, match="inside one another"):
            source.check(os.getuid(), workspace)
    other = tmp_path / "other"
    other.mkdir()
    source.check(os.getuid(), other)


def test_what_the_privileged_processes_are_forked_from_imports_no_library_and_nothing_of_the_worker() -> None:
    code = "import sys, typing, fumehood.delegate.crew; print(*sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    plain = [sys.executable, "-S", "-c", code]
    done = subprocess.run(plain, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(Path(fumehood.__file__).parents[1])})
    assert done.stdout.split() == ["__main__", "fumehood"]
