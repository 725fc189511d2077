"""Where approvers' answers come: past Host and Origin and without a token, bounded, and without a word about what was wrong."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import fakes
from fumehood.approvals.answers import made
from fumehood.gateway.callback import AT_ONCE, Callback
from fumehood.gateway.http_head import Answered, Refusal, Rules, judge
from fumehood.ports import Approvals, Ports
from fumehood.thumbprint import text_of

ALICE = Ed25519PrivateKey.generate()
PATH = "/approvals/callback"
HOST = (b"host", b"127.0.0.1:8765")


def rules(callback: str | None = PATH) -> Rules:
    return Rules(authenticate=lambda _: None, hosts=frozenset({"127.0.0.1"}), callback=callback)


def status(path: str, *headers: tuple[bytes, bytes], callback: str | None = PATH) -> int | None:
    found = judge("POST", path, headers, rules(callback))
    if isinstance(found, Refusal):
        return found.status
    assert isinstance(found, Answered)
    return None


def test_an_answer_passes_without_a_token_where_the_operator_has_a_path_for_it() -> None:
    assert status(PATH, HOST) is None
    assert status(PATH, HOST, callback=None) == 404
    assert status(PATH + "/", HOST) == 404
    assert status("/mcp", HOST) == 401


def test_a_page_in_a_browser_brings_none() -> None:
    assert status(PATH, (b"host", b"evil.example")) == 421
    assert status(PATH, HOST, (b"origin", b"https://evil.example")) == 403
    assert status(PATH, HOST, HOST) == 400


def ports(ledger: fakes.FakeLedger) -> Ports:
    keys = {"alice": text_of(ALICE.public_key().public_bytes_raw())}
    return replace(fakes.ports(ledger, fakes.FakeClock(time.time())), approvals=Approvals(keys=keys, callback=PATH))


def signed(key: Ed25519PrivateKey) -> bytes:
    now = int(time.time())
    return made(key.sign, {
        "iss": "alice", "aud": "fumehood", "iat": now, "exp": now + 200, "jti": "j" * 20, "approval": "0" * 26,
        "binding": "sha256:b", "decision": "approve", "reason": "",
    }).encode()  # fmt: skip


@pytest.mark.anyio
async def test_what_no_approver_signed_costs_the_ledger_nothing_and_looks_like_what_it_refuses() -> None:
    ledger = fakes.FakeLedger()
    callback = Callback(ports(ledger))
    for body in (signed(Ed25519PrivateKey.generate()), b"", b"a.b.c", b"\xff\xfe"):
        assert await callback.take(body) == 403
    assert ledger.answers == []
    assert await callback.take(signed(ALICE)) == 403
    assert len(ledger.answers) == 1
    ledger.gone = True
    assert await callback.take(signed(ALICE)) == 503


def test_only_so_many_are_looked_at_at_once() -> None:
    callback = Callback(ports(fakes.FakeLedger()))
    with ExitStack() as stack:
        assert all(stack.enter_context(callback.one_more()) for _ in range(AT_ONCE))
        assert not stack.enter_context(callback.one_more())
    with callback.one_more() as may:
        assert may
