"""The `approvals:` section: who may approve, one person once; what is wrong is said in one line, and no secret is repeated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fumehood import config, launch
from fumehood.approvals.config import ApprovalsConfig
from fumehood.faults import FumehoodError
from fumehood.outward_config import SecretSource, WebhookConfig

X = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
Y = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"


def parsed(text: str) -> ApprovalsConfig:
    found = config.parse(f"approvals: {text}\n", "fumehood.yaml").approvals
    assert found is not None
    return found


def wrong(text: str) -> str:
    with pytest.raises(FumehoodError) as caught:
        parsed(text)
    return caught.value.detail


def test_a_whole_section_is_read() -> None:
    found = parsed(
        f"{{approvers: {{alice: {{key: {X}}}, me: {{uid: 0}}}}, wait: 2m, expire: 4h, own: never, audience: 'https://f.example', "
        "callback: /approvals/callback, webhook: {url: 'https://chat.example/hook', secret: {env: HOOK}}}"
    )
    assert found == ApprovalsConfig(
        approvers=(("alice", "key", X), ("me", "uid", "0")), wait_s=120, expire_s=14400, own=False, audience="https://f.example",
        callback="/approvals/callback", webhook=WebhookConfig(url="https://chat.example/hook", secret=SecretSource("env", ("HOOK",))),
    )  # fmt: skip
    assert parsed("{}") == ApprovalsConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{approvers: {alice: {}}}", "expected exactly one of uid, key"),
        (f"{{approvers: {{alice: {{uid: 0, key: {X}}}}}}}", "expected exactly one of uid, key"),
        (f"{{approvers: {{alice: {{key: {X}}}, bob: {{key: {X}}}}}}}", "the same as another approver"),
        ("{approvers: {alice: {uid: 0}, bob: {uid: 0}}}", "the same as another approver"),
        ("{approvers: {alice: {key: short}}}", "Ed25519 public key"),
        ("{approvers: {'Alice B': {uid: 0}}}", "name"),
        ("{approvers: {alice: {uid: -1}}}", "expected at least 0"),
        ("{wait: 2h}", "expected between"),
        ("{expire: 1s}", "expected between"),
        ("{own: always}", "terminal"),
        ("{callback: approvals}", "a path such as /approvals/callback"),
        ("{callback: /mcp}", "a path such as /approvals/callback"),
        ("{webhook: {url: 'http://chat.example/x', secret: {env: H}}}", "https://HOST"),
        ("{webhook: {url: 'https://u:hunter2@chat.example/x', secret: {env: H}}}", "https://HOST"),
        ("{webhook: {url: 'https://chat.example/x', secret: hunter2}}", "expected where the secret is"),
        ("{webhook: {url: 'https://chat.example/x', secret: {env: H, file: /x}}}", "exactly one of"),
        ("{approver: {}}", "approver"),
    ],
)
def test_what_is_wrong_is_said_in_its_place(text: str, said: str) -> None:
    found = wrong(text)
    assert "fumehood.yaml" in found
    assert said in found
    assert "hunter2" not in found


def chosen(**approvals: Any) -> dict[str, Any]:
    return launch._approving(config.Config(approvals=ApprovalsConfig(**approvals)), 0, "root")


def test_the_guides_section_is_a_configuration() -> None:
    guide = Path(__file__).resolve().parents[3] / "docs" / "approvals.md"
    (text,) = re.findall(r"```yaml\n# config: fumehood.yaml\n(.*?)```", guide.read_text(), re.DOTALL)
    found = config.parse(text, "fumehood.yaml").approvals
    assert found is not None
    assert (len(found.approvers), found.wait_s, found.callback) == (2, 50, "/approvals/callback")


def test_without_approvers_it_is_the_owner_of_the_state_folder() -> None:
    assert chosen()["approvers"] == (("root", "uid", "0"),)
    assert chosen(approvers=(("alice", "key", X), ("bob", "key", Y)))["approvers"] == (("alice", "key", X), ("bob", "key", Y))


def test_another_user_of_the_host_needs_a_key() -> None:
    with pytest.raises(FumehoodError, match="uid 1000 does not own the state folder"):
        chosen(approvers=(("alice", "uid", "1000"),))
