"""Where a handed-over function may come from, and what is left of a server that started wrong, lied or was killed."""

from __future__ import annotations

from handing import Driver, boxes, start, until
from lab import Lab


def refused_start(lab: Lab, code: str) -> str:
    process = start(lab, "oci", code)
    _, errors = process.communicate("", timeout=30)
    assert process.returncode != 0
    return errors


OPEN = """
import anyio, sys, fumehood
sys.path.insert(0, {folder!r})
import planted
async def main():
    async with fumehood.Runtime.open(engine="oci", **{options!r}):
        print("opened")
anyio.run(main)
"""
PLANTED = "from fumehood import boxed\n@boxed\ndef f() -> int:\n    return 1\n"


def test_a_source_that_others_could_have_written_is_refused(lab: Lab) -> None:
    folder = lab.folder / "open-to-all"
    folder.mkdir(exist_ok=True)
    (folder / "planted.py").write_text(PLANTED)
    folder.chmod(0o777)
    said = refused_start(lab, OPEN.format(folder=str(folder), options={}))
    assert "config_unsafe" in said
    folder.chmod(0o755)
    (folder / "planted.py").chmod(0o666)
    assert "config_unsafe" in refused_start(lab, OPEN.format(folder=str(folder), options={}))


def test_a_source_in_the_workspace_is_refused(lab: Lab) -> None:
    folder = lab.workspace("with-source")
    (folder / "planted.py").write_text(PLANTED)
    options = {"workspace": str(folder), "profile": "python"}
    assert "lie inside one another" in refused_start(lab, OPEN.format(folder=str(folder), options=options))


LYING = """
import anyio, sys, fumehood, handed
from dataclasses import replace
from fumehood.brokering import BrokerClient
from fumehood.model import ReadOnlyMount
bind = BrokerClient.bind
async def lying(self, task, binding, supplies):
    return await bind(self, task, replace(binding, mounts=(ReadOnlyMount(source={other!r}, name="fumehood-source"),)), supplies)
BrokerClient.bind = lying
async def main():
    async with fumehood.Runtime.open(profile=sys.argv[1], engine=sys.argv[2]):
        try:
            await handed.nan()
        except fumehood.CallFailed as error:
            print(error.reason.value)
anyio.run(main)
"""


def test_a_taken_over_server_cannot_mount_what_was_not_handed_over(lab: Lab, engine: str) -> None:
    for other in ("/etc", str(lab.folder / "code"), str(lab.folder / "code" / "secret.env")):
        process = start(lab, engine, LYING.format(other=other))
        out, errors = process.communicate("", timeout=60)
        assert process.returncode == 0, errors
        assert out == "workspace_not_allowed\n"
    assert lab.left() == []


def test_a_server_that_is_killed_leaves_no_box(lab: Lab, engine: str) -> None:
    process = start(lab, engine)
    one = Driver(process)
    assert one.line() == "open"
    one.begin("sleeps", {"seconds": 15})
    until(lambda: boxes(lab) != [], 10)
    process.kill()
    process.communicate(timeout=30)
    until(lambda: lab.left() == [], 20)

RULES = """
import anyio, importlib, pathlib, sys, fumehood
sys.path.insert(0, {folder!r})
import noting
def told(error):
    print(error.reason.value if isinstance(error, fumehood.FumehoodError) else repr(error))
async def main():
    async with fumehood.Runtime.open(engine="oci", profile={profile!r}, workspace={workspace!r}) as runtime:
        await noting.note("kept")
        import late
        for attempt in (
            lambda: noting.note(""), lambda: noting.hidden(), lambda: late.note("late"),
            lambda: runtime.run(runtime.call("note", profile="shell"), fumehood.Command(("true",))),
        ):
            try:
                await attempt()
            except Exception as error:
                told(error)
        print(pathlib.Path({workspace!r}, "note").read_text())
        raise KeyError("of the body")
try:
    anyio.run(main)
except KeyError as error:
    print(repr(error))
"""
NOTING = """
from fumehood import boxed
@boxed
def note(text: str) -> None:
    with open("/workspace/note", "w") as file:
        file.write(text or "spoilt")
    if not text:
        raise ValueError("empty")
@boxed
def hidden() -> None:
    raise AssertionError
"""


def test_a_function_is_judged_by_its_profile_and_loses_its_changes_when_it_raises(lab: Lab) -> None:
    folder, workspace = lab.folder / "noting", lab.workspace("noted")
    folder.mkdir(mode=0o755)
    for name in ("noting", "late"):
        (folder / f"{name}.py").write_text(NOTING)
    profile = lab.folder / "profiles" / "noting.yaml"
    profile.write_text("extends: function\ntools: {allow: [note]}\nfilesystem: {workspace: rw}\n")
    process = start(lab, "oci", RULES.format(folder=str(folder), workspace=str(workspace), profile=str(profile)))
    out, errors = process.communicate("", timeout=60)
    assert process.returncode == 0, errors
    assert out.splitlines() == [
        "ValueError('empty')", "tool_not_allowed", "function_unfit", "profile_unknown", "kept", "KeyError('of the body')",
    ]  # fmt: skip
    assert lab.left() == []
