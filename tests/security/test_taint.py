"""Attacks that carry what a stranger wrote, or what is private, past the policy: another tool, another connection, a file. And budgets."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from lab import Lab, lab_for
from live_gateway import NAPPER, PROFILE, LiveGateway, configure, live_gateway

pytestmark = pytest.mark.root

OWNER = "policy: {shipped: [owner, taint]"


@pytest.fixture
def fresh(request: pytest.FixtureRequest, engine: str) -> Iterator[Lab]:
    """A state folder for each test: a conversation is remembered beyond a gateway's life."""
    with lab_for("python", f"t{hash((request.node.name, engine)) % 10**6}") as made:
        yield made
        assert made.left() == []


def server(of: Lab, name: str, engine: str, labels: str = "", *, workspace: str | None = None, more: str = "") -> str:
    """One entry below `servers:`, whose tool has the server's name and these labels."""
    folder = of.folder / "workspaces" / (workspace or name)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(NAPPER, folder / "napper.py")
    profile = of.profile(f"labelled-{name}", f"{PROFILE}labels: {{{name}: {{{labels}}}}}\n{more}")
    return f"{name}: {{profile: {profile}, workspace: {folder}, command: [python3, /workspace/napper.py, {name}], engine: {engine}}}"


def reason(result: Any) -> str | None:
    outcome = result["_meta"].get("fumehood/outcome", {})
    return outcome.get("rule") if result.get("isError") else None


def three(of: Lab, engine: str) -> str:
    web = server(of, "web", engine, "returns: untrusted")
    files = server(of, "files", engine, "reads: private")
    out = server(of, "out", engine, "effect: external")
    return f"{{servers: {{{web}, {files}, {out}}}}}"


def tools(gateway: LiveGateway, *names: str) -> list[str | None]:
    return [reason(gateway.call(f"{name}__{name}")) for name in names]


def test_content_is_not_laundered_through_a_second_tool_or_a_second_connection(fresh: Lab, engine: str) -> None:
    file = configure(fresh, three(fresh, engine), OWNER + "}")
    with live_gateway(fresh, file) as gateway:
        assert tools(gateway, "out", "web", "out", "files") == [None, None, None, None]
        assert tools(gateway, "out") == ["policy.taint"]
        assert tools(gateway, "files", "web", "out") == [None, None, "policy.taint"]
        assert gateway.end() == 0
    with live_gateway(fresh, file) as again:
        assert tools(again, "out") == ["policy.taint"]
        assert again.end() == 0


def test_content_is_not_laundered_by_a_call_that_begins_before_the_other_has_ended(fresh: Lab, engine: str) -> None:
    with live_gateway(fresh, configure(fresh, three(fresh, engine), OWNER + "}")) as gateway:
        assert tools(gateway, "files") == [None]
        fetching = gateway.send("tools/call", name="web__web", arguments={"seconds": 3, "write": "begun"})
        gateway.until(lambda: (fresh.folder / "state").exists() and gateway_knows(fresh, "web"))
        assert tools(gateway, "out") == ["policy.taint"]
        assert not gateway.answer(fetching)["result"].get("isError")
        assert gateway.end() == 0


def gateway_knows(lab: Lab, tool: str) -> bool:
    """Whether the record of a call of this tool is open."""
    return any(row["tool"] == tool and row["state"] != "closed" for row in lab.fumehood("tasks", "--json").said)


def test_fifty_calls_at_once_have_a_budget_of_twenty(fresh: Lab, engine: str) -> None:
    one = server(fresh, "one", engine)
    budget = ", budgets: [{name: few, calls: 20, per: 1h, tools: ['one/*']}]}"
    with live_gateway(fresh, configure(fresh, f"{{servers: {{{one}}}}}", "boxes: 40\n" + OWNER + budget)) as gateway:
        assert gateway.tools() == ["one"]
        sent = [gateway.send("tools/call", name="one", arguments={"seconds": 1}) for _ in range(50)]
        answers = [gateway.answer(number, timeout_s=120)["result"] for number in sent]
        over = [answer for answer in answers if answer.get("isError")]
        assert {reason(answer) for answer in over} == {"policy.budgets.few"}
        assert len(over) == 30
        assert "there is room again" in over[0]["content"][0]["text"]
        assert gateway.end() == 0


def test_a_file_in_a_workspace_carries_what_its_writers_conversation_held(fresh: Lab, engine: str) -> None:
    web = server(fresh, "web", engine, "returns: untrusted", workspace="shared")
    near = server(fresh, "near", engine, "reads: private, effect: external", workspace="shared")
    far = server(fresh, "far", engine, "reads: private, effect: external")
    (fresh.folder / "workspaces" / "shared" / "inner").mkdir()
    (fresh.folder / "workspaces" / "link").symlink_to("shared/inner")
    linked = server(fresh, "linked", engine, "reads: private, effect: external", workspace="link")
    with live_gateway(fresh, configure(fresh, f"{{servers: {{{web}, {near}, {far}, {linked}}}}}", OWNER + "}")) as gateway:
        assert tools(gateway, "near", "far", "linked") == [None, None, None]
        result = gateway.call("web__web", write="page.html")
        assert reason(result) is None
        # The sender's own conversation is ended, as if another sender read the file.
        assert fresh.fumehood("policy", "forget", "root", "--json").said["forgotten"] > 0
        assert tools(gateway, "far") == [None]
        assert tools(gateway, "near") == ["policy.taint"]
        assert fresh.fumehood("policy", "forget", "root", "--json").said["forgotten"] > 0
        assert tools(gateway, "linked") == ["policy.taint"], "a link to a folder inside"
        assert gateway.end() == 0
    held = fresh.fumehood("policy", "show", "--conversations", "--json").said["taints"]
    assert any(row["place"].endswith("/workspaces/shared") and row["label"] == "untrusted" for row in held)


def test_records_say_enough_to_explain_a_call_and_to_try_other_policies_on_it(fresh: Lab, engine: str) -> None:
    with live_gateway(fresh, configure(fresh, three(fresh, engine), OWNER + "}")) as gateway:
        assert tools(gateway, "web", "files") == [None, None]
        refused = gateway.call("out__out")
        assert reason(refused) == "policy.taint"
        assert gateway.end() == 0
    task = refused["_meta"]["fumehood/task"]
    told = fresh.fumehood("policy", "explain", "--task", task, "--json").said
    assert (told["decision"], [rule["id"] for rule in told["rules"]]) == ("ask", ["taint", "owner", "senders"][: len(told["rules"])])
    assert {"changes": ["the conversation holds nothing untrusted"], "decision": "allow"} in told["flips"]
    strict = fresh.folder / "strict.cedar"
    strict.write_text('@id("no-web") forbid (principal, action, resource in Server::"web");\n')
    strict.chmod(0o644)
    replayed = fresh.fumehood("policy", "replay", str(strict), "--json").said
    assert {(each["call"], each["before"], each["after"]) for each in replayed["changed"]} == {("web/web", "allow", "deny"), ("web", "allow", "deny")}
    assert (replayed["unknown"], replayed["depending"]) == (0, [])
    strict.write_text('@id("some") forbid (principal, action, resource in Server::"web") when { context.flag.hasTag("x") };\n')
    assert fresh.fumehood("policy", "replay", str(strict), "--json").said["unknown"] == 2
