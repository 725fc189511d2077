"""The webhook's message: signed as Standard Webhooks has it, escaped like every prompt, and without the whole of large arguments."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest

from fumehood.approvals.prompt import shown_arguments
from fumehood.approvals.webhook import SHOWN_ARGUMENTS, body_of, key_of, signed

QUESTION = {
    "kind": "tool", "tool": "\x1b[2J", "server": "git", "front_door": "gateway", "session": None, "sender": "root", "tenant": "local",
    "uid": 0, "profile": "git", "profile_digest": "sha256:p", "image": None, "pin": None, "policy": "owner/1", "rule": "ask.1",
    "workspace": None, "why": [], "may": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("secret", "key"),
    [("whsec_" + base64.b64encode(b"abc").decode(), b"abc"), ("whsec_%%", b"whsec_%%"), ("plain", b"plain")],
)
def test_a_secret_is_written_as_standard_webhooks_writes_it_or_as_it_is(secret: str, key: bytes) -> None:
    assert key_of(secret) == key


def test_a_signature_is_over_id_time_and_body() -> None:
    headers = signed(b"k", "id", 7, b"{}")
    expected = base64.b64encode(hmac.new(b"k", b"id.7.{}", hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("id", "7")


def test_what_is_posted_is_the_prompt_and_its_fields_and_says_what_it_leaves_out() -> None:
    text = json.dumps({"a": "x" * 100_000, "b": "\u202e"})
    row = {
        "id": "0" * 26, "binding": "sha256:b", "until": 1.0, "need": {"approvers": None, "count": 1, "requester": False}, "votes": [],
        "question": {**QUESTION, **shown_arguments(text)},
    }  # fmt: skip
    body = body_of(row)
    assert len(body) < 16 * 1024
    said = json.loads(body)
    assert said["type"] == "approval.asked"
    assert "arguments" not in said["question"]
    assert said["question"]["arguments_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert f"{len(text) - SHOWN_ARGUMENTS} bytes are left out" in said["text"]
    assert "\\u001b[2J" in said["text"]
    assert said["binding"] == "sha256:b"
