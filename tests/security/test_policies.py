"""Attacks on the policies of a gateway that runs: real boxes, real files, a reload in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lab import Lab, lab_for
from live_gateway import configure, live_gateway, napping

pytestmark = pytest.mark.root

PERMIT = '@id("all") permit (principal, action in [Action::"call", Action::"call_with_approval"], resource);\n'
ASK = '@id("ask") @why("it writes") forbid (principal, action == Action::"call", resource == Tool::"one/one") when { context.text.hasTag("write") };\n'
NEVER = '@id("never") forbid (principal, action, resource) when { context.path.hasTag("write") && context.path.getTag("write") like "/etc/*" };\n'
OVERFLOWS = '@id("adds") forbid (principal, action, resource) when { context.number.hasTag("seconds") && context.number.getTag("seconds") + 1 > 60 };\n'


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("python", "p") as made:
        yield made
        assert made.left() == []


def policies(of: Lab, text: str, *, shipped: str = "") -> str:
    """A folder with one file of policies, and the line of a configuration that names it."""
    folder = of.folder / "policies"
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / "a.cedar").write_text(text)
    (folder / "a.cedar").chmod(0o644)
    return f"policy: {{files: [{folder}/*.cedar], shipped: [{shipped}]}}"


def ended(result: Any) -> tuple[str, str]:
    """Why a call was refused, and by which rule."""
    outcome = result["_meta"]["fumehood/outcome"]
    return outcome["reason"], outcome["rule"]


def test_policies_allow_ask_and_deny_each_call_by_its_arguments(lab: Lab, engine: str) -> None:
    one, workspace = napping(lab, "one", engine=engine)
    with live_gateway(lab, configure(lab, f"{{servers: {{{one}}}}}", policies(lab, PERMIT + ASK + NEVER + OVERFLOWS))) as gateway:
        assert gateway.call("one")["content"][0]["text"] == "one"
        asked = gateway.call("one", write="here")
        assert ended(asked) == ("approval_pending", "policy.ask")
        denied = gateway.call("one", write="/etc/passwd")
        assert ended(denied) == ("policy_denied", "policy.never")
        failed = gateway.call("one", seconds=2**63 - 1)
        assert ended(failed) == ("policy_failed", "policy")
        assert gateway.end() == 0
    assert not (workspace / "here").exists()


BELOW = """
@id("below") permit (principal, action == Action::"call", resource == Tool::"one/one")
when { context.path.hasTag("write") && context.path.getTag("write") like "/workspace/src/*" };
@id("lists") permit (principal, action == Action::"call", resource == Server::"one");
"""
DISGUISES = [
    "src/../escaped", "/workspace/src/../escaped", "src/%2e%2e/escaped", "src/..%2fescaped", "src\\\\..\\\\escaped", "/workspace/../etc/passwd",
    "src/\uff0e\uff0e/escaped", "src\uff0fescaped", "src/./../escaped", "src//../escaped", "src/..", "src/a\u202eb", "~/src/a", "file:///workspace/src/a",
]


def test_a_path_in_disguise_is_not_below_what_is_permitted(lab: Lab, engine: str) -> None:
    one, workspace = napping(lab, "one", engine=engine)
    (workspace / "src").mkdir()
    with live_gateway(lab, configure(lab, f"{{servers: {{{one}}}}}", policies(lab, BELOW))) as gateway:
        assert gateway.call("one", write="src/honest")["content"][0]["text"] == "one"
        for disguise in DISGUISES:
            assert ended(gateway.call("one", write=disguise)) == ("policy_denied", "policy"), disguise
        assert gateway.end() == 0
    assert sorted(path.name for path in workspace.rglob("*") if path.is_file()) == ["honest", "napper.py"]


def test_a_broken_policy_at_reload_leaves_the_last_good_set_in_force_and_says_so(lab: Lab, engine: str) -> None:
    one, _ = napping(lab, "one", engine=engine)
    configured = f"{{servers: {{{one}}}}}"
    with live_gateway(lab, configure(lab, configured, policies(lab, 'forbid (principal, action, resource == Tool::"one/one");\n' + PERMIT))) as gateway:
        assert ended(gateway.call("one"))[0] == "policy_denied"
        policies(lab, PERMIT + "forbid (principal, action resource);")
        assert "a.cedar:2: unexpected token" in gateway.reload()
        assert ended(gateway.call("one"))[0] == "policy_denied"
        policies(lab, PERMIT)
        assert "served now: one" in gateway.reload()
        assert gateway.call("one")["content"][0]["text"] == "one"
        (lab.folder / "policies" / "a.cedar").chmod(0o666)
        assert "can be written by others" in gateway.reload()
        assert gateway.call("one")["content"][0]["text"] == "one"
        assert gateway.end() == 0


def test_policies_in_a_workspace_are_refused_for_a_box_could_have_written_them(lab: Lab) -> None:
    one, workspace = napping(lab, "one")
    (workspace / "a.cedar").write_text(PERMIT)
    file = configure(lab, f"{{servers: {{{one}}}}}", f"policy: {{files: ['{workspace}/*.cedar']}}")
    done = lab.fumehood("gateway", "--config", str(file))
    assert done.status == 125
    assert "lies inside the workspace" in done.one_clear_line()


def test_without_a_policy_of_the_operators_nobody_but_the_owner_may_call(lab: Lab) -> None:
    (lab.folder / "none.yaml").write_text("policy: {shipped: []}\n")
    done = lab.fumehood("run", "--config", str(lab.folder / "none.yaml"), "--profile", "python", "--", "true")
    assert done.status == 125
    assert "sender_denied" in done.stderr
