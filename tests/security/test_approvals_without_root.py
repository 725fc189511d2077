"""Approvals of an ordinary user's own: the same question, the same terminal, and no door for anybody else."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from people import asks, at_terminal, program, waiting
from userlab import UserLab

pytestmark = pytest.mark.root


def test_a_user_approves_at_a_terminal_what_waits_for_them(user_lab: UserLab) -> None:
    lab = user_lab
    patch = asks().replace("Kind.TOOL", "Kind.COMMAND")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(lab.run("oci", "echo", "hello", program=program(patch))))
    thread.start()
    (row,) = waiting(lab)
    done = lab.fumehood("approvals", "approve", row["id"], "--yes", "--binding", row["binding"])
    assert "approver_unfit" in done.one_clear_line()
    status, said = at_terminal(lab, "approve", row["id"])
    assert status == 0, said
    thread.join(40)
    assert found[0].status == 0, found[0].stderr
    assert found[0].told == "hello\n"
    record = lab.fumehood("task", found[0].said["task"], "--json").said
    (granted,) = [event["facts"] for event in record["events"] if event["state"] == "granted"]
    assert [vote["identity"] for vote in granted["approval"]["votes"]] == [f"uid:{lab.uid}"]
    assert lab.left() == []
