"""What the operator process may tell the broker, and what of it a box that is made already hears."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from fumehood import wire
from fumehood.broker import orders
from fumehood.broker.box import Box
from fumehood.broker.host import Host
from fumehood.faults import Refused
from fumehood.settings import Settings
from fumehood.state import StateFolder


@dataclass
class OnlySettings:
    """The part of a host that orders are about."""

    settings: Settings


@pytest.fixture
def host(tmp_path: Path) -> Host:
    settings = Settings(
        state=StateFolder(tmp_path), runtime_id="r", boot_id="b", caller_uid=0, caller_name="root", worker_uid=1,
        worker_gid=1, ledger_uid=2, ledger_gid=2, ids_start=0, ids_count=0, workspace_roots=("/old",), mount_roots=(),
        engine=None, boxes=1, docker_host="",
    )  # fmt: skip
    return cast("Host", OnlySettings(settings))


def order(**args: Any) -> dict[str, Any]:
    return {"id": 1, "verb": "allow", "args": {"workspaces": ["/new"], "mounts": ["/m"], **args}}


def test_an_order_replaces_both_lists(host: Host) -> None:
    orders.allow(host, order())
    assert (host.settings.workspace_roots, host.settings.mount_roots) == (("/new",), ("/m",))
    orders.allow(host, order(workspaces=[], mounts=[]))
    assert (host.settings.workspace_roots, host.settings.mount_roots) == ((), ())


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"verb": "make", "args": {"workspaces": [], "mounts": []}},
        {"verb": "allow", "args": None},
        {"verb": "allow", "args": {"workspaces": ["/a"]}},
        order(workspaces=None),  # which would mean any directory
        order(workspaces="/"),
        order(workspaces=["relative"]),
        order(mounts=[""]),
        order(workspaces=[7]),
        order(workspaces=["/a"] * 1025),
    ],
)
def test_anything_else_changes_nothing(host: Host, message: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        orders.allow(host, message)
    assert host.settings.workspace_roots == ("/old",)


def test_a_box_keeps_what_was_allowed_when_it_was_made(host: Host) -> None:
    before = Box(host, "t", cast("Any", None))
    orders.allow(host, order())
    after = Box(host, "u", cast("Any", None))
    assert before._settings.workspace_roots == ("/old",)
    assert after._settings.workspace_roots == ("/new",)


def test_a_refused_order_is_answered_and_garbage_ends_the_connection(host: Host) -> None:
    operator, broker = wire.pair()
    taking = threading.Thread(target=orders.take_orders, args=(broker, host))
    taking.start()
    operator.settimeout(10)
    with pytest.raises(Refused):
        wire.request(operator, "allow", {"workspaces": ["relative"], "mounts": []})
    assert wire.request(operator, "allow", {"workspaces": ["/new"], "mounts": []})[0] == {}
    operator.send(b"garbage")
    assert wire.receive(operator) is None
    taking.join(10)
    assert not taking.is_alive()
    assert host.settings.workspace_roots == ("/new",)
    operator.close()
