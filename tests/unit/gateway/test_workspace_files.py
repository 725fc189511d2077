"""Files of a workspace as resources: only what the profile names, each in a box of its own; links to what a call changed."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from front_client import Open, client, opened
from local_runner import FakeSpine

from fumehood.gateway import files, protocol
from fumehood.gateway.protocol import GatewayError
from fumehood.model import FileChange, Kind, Result, WorkspaceMode
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def reading(tmp_path: Path, *allowed: str, mode: WorkspaceMode = WorkspaceMode.RW, **more: Any) -> AsyncIterator[Open]:
    spine = FakeSpine(workspace=tmp_path)
    (tmp_path / "sub").mkdir(exist_ok=True)
    (tmp_path / "sub" / "a b.txt").write_text("wörds")
    (tmp_path / "b.bin").write_bytes(b"\xff\x00")
    resources = frozenset(allowed or ("workspace:///*",))
    async with opened("modern", spine=spine, resources=resources, workspace=mode, **more) as open_:
        yield open_


async def code(open_: Open, uri: str) -> tuple[int, str]:
    with pytest.raises(GatewayError) as caught:
        await open_.ask("resources/read", uri=uri)
    return caught.value.code, str((caught.value.data or {}).get("reason"))


async def test_a_file_is_text_or_a_blob_and_its_reading_is_a_call(tmp_path: Path) -> None:
    async with reading(tmp_path) as open_:
        uri = "workspace:///sub/a%20b.txt"
        found = await open_.ask("resources/read", uri=uri)
        assert found["contents"] == [{"uri": uri, "mimeType": "text/plain", "text": "wörds"}]
        assert found["cacheScope"] == "private"
        call, outcome = open_.spine.outcomes[-1]
        assert (call.kind, call.tool, call.profile.filesystem.workspace) == (Kind.RESOURCE, uri, WorkspaceMode.RO)
        assert outcome.task == found["_meta"][protocol.TASK_KEY]
        blob = await open_.ask("resources/read", uri="workspace:///b.bin")
        assert base64.b64decode(blob["contents"][0]["blob"]) == b"\xff\x00"


@pytest.mark.parametrize(
    "uri",
    [
        "workspace:///../x", "workspace:///sub/../../x", "workspace:///sub/%2e%2e/%2E%2e/x", "workspace:///..%2fx",
        "workspace:///./b.bin", "workspace:////etc/passwd", "workspace:///sub//a", "workspace:///", "workspace:///sub/",
        "workspace:///b.bin?x", "workspace:///b.bin#x", "workspace:///b.bin%00", "workspace:///sub%5ca", "workspace:///%ff",
        "workspace:///" + "a" * 5000,
    ],
)  # fmt: skip
async def test_what_is_no_plain_path_below_the_workspace_starts_nothing(tmp_path: Path, uri: str) -> None:
    async with reading(tmp_path) as open_:
        number, reason = await code(open_, uri)
        assert number == protocol.INVALID_PARAMS
        assert reason in {Reason.NOT_ALLOWED, Reason.NOT_KNOWN}
        assert open_.spine.pids == []
        assert open_.spine.outcomes[-1][1].result is Result.REFUSED, "it leaves a record"


async def test_twice_encoded_dots_are_a_name_and_no_way_up(tmp_path: Path) -> None:
    async with reading(tmp_path) as open_:
        assert await code(open_, "workspace:///%252e%252e/x") == (protocol.INVALID_PARAMS, Reason.NOT_KNOWN)


@pytest.mark.parametrize(("allowed", "uri"), [
    ("workspace:///sub/*", "workspace:///b.bin"), ("workspace:///b", "workspace:///b.bin"), ("*", "workspace:///b.bin"),
    ("w*", "workspace:///b.bin"), ("memo://*", "workspace:///b.bin"), ("workspace:///sub/*", "workspace:///sub/../b.bin"),
])  # fmt: skip
async def test_only_an_entry_that_names_the_workspace_opens_any_of_it(tmp_path: Path, allowed: str, uri: str) -> None:
    async with reading(tmp_path, allowed) as open_:
        assert await code(open_, uri) == (protocol.INVALID_PARAMS, Reason.NOT_ALLOWED)
        assert open_.spine.pids == []


async def test_all_of_a_servers_resources_are_not_the_workspaces(tmp_path: Path) -> None:
    async with opened("modern", spine=FakeSpine(workspace=tmp_path), resources=None, workspace=WorkspaceMode.RW) as open_:
        assert await code(open_, "workspace:///b.bin") == (protocol.INVALID_PARAMS, Reason.NOT_ALLOWED)


@pytest.mark.parametrize("mode", [WorkspaceMode.NONE, WorkspaceMode.SCRATCH])
async def test_without_a_directory_there_are_no_files_and_no_template(tmp_path: Path, mode: WorkspaceMode) -> None:
    async with reading(tmp_path, mode=mode) as open_:
        assert await code(open_, "workspace:///b.bin") == (protocol.INVALID_PARAMS, Reason.NOT_KNOWN)
        assert (await open_.ask("resources/templates/list"))["resourceTemplates"] == []


async def test_the_template_is_listed_where_the_profile_names_files(tmp_path: Path) -> None:
    async with reading(tmp_path) as open_:
        (template,) = (await open_.ask("resources/templates/list"))["resourceTemplates"]
        assert template["uriTemplate"] == "workspace:///{+path}"
        assert (await open_.ask("resources/list"))["resources"] == []


async def test_a_file_over_the_limit_is_an_error_that_names_it(tmp_path: Path) -> None:
    async with reading(tmp_path, result_bytes=2000) as open_:
        (tmp_path / "large").write_bytes(b"x" * 2001)
        number, reason = await code(open_, "workspace:///large")
        assert (number, reason) == (protocol.CALL_FAILED, Reason.RESULT_TOO_LARGE)


async def test_a_call_links_to_what_it_changed_as_far_as_the_client_may_read_it(tmp_path: Path) -> None:
    async with reading(tmp_path, "workspace:///sub/*") as open_:
        changed = [FileChange(path=f"sub/{n}", kind="added", size_bytes=n) for n in range(40)]
        others = [FileChange(path="b", kind="added"), FileChange(path="sub/gone", kind="deleted")]
        named = FileChange(path="sub/a b#?é", kind="modified", size_bytes=3)
        open_.spine.changes = (*others, named, *changed)
        told = await open_.ask("tools/call", name="count", arguments={})
        first, *links = told["content"]
        assert first["text"] == "1"
        assert len(links) == files.MAX_LINKS
        assert links[0] == {
            "type": "resource_link", "uri": "workspace:///sub/a%20b%23%3F%C3%A9", "name": "sub/a b#?é", "size": 3,
        }  # fmt: skip
        assert files.path_of(links[0]["uri"]) == named.path
        assert {link["uri"] for link in links[1:]} <= {f"workspace:///sub/{n}" for n in range(40)}


async def test_a_server_cannot_list_what_has_an_address_of_ours(tmp_path: Path) -> None:
    async with reading(tmp_path, "workspace:///*", "memo://*", "fumehood://*") as open_:
        uris = [each["uri"] for each in (await open_.ask("resources/list", client()))["resources"]]
        assert uris == ["memo://one", "memo://two"]
