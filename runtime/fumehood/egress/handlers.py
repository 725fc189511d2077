"""Which module serves which kind of rule. Imported when a profile has such a rule, and not before (TLS and HTTP are heavy)."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from fumehood.egress.task import GateTask, Serve
from fumehood.faults import Refused
from fumehood.model import Deny
from fumehood.reach import EgressKind, Supplies
from fumehood.reasons import Reason

_MODULES = {
    EgressKind.HTTP: "fumehood.egress.terminate",
    EgressKind.TLS: "fumehood.egress.relay",
    EgressKind.POSTGRES: "fumehood.egress.postgres",
    EgressKind.TCP: "fumehood.egress.relay",
}


def serve_of(kind: EgressKind) -> Serve:
    """What serves connections of this kind."""
    found: Serve = _module(kind).serve
    return found


def supplies_of(kinds: Iterable[EgressKind], task: GateTask, leased: Supplies) -> Supplies:
    """What leases and handlers put into a box, together. Raises Refused when two want the same place."""
    every = [leased]
    for module in dict.fromkeys(_module(kind) for kind in kinds):
        supply = getattr(module, "supply", None)
        if supply is not None:
            every.append(supply(task))
    environment: dict[str, str] = {}
    for supplies in every:
        if taken := environment.keys() & supplies.environment.keys():
            raise _twice(f"variable {min(taken)}")
        environment.update(supplies.environment)
    files = [file for supplies in every for file in supplies.files]
    for place in ("name", "over"):
        places = [getattr(file, place) for file in files if getattr(file, place) is not None]
        if twice := {each for each in places if places.count(each) > 1}:
            raise _twice(f"file {min(twice)}")
    return Supplies(environment=environment, files=tuple(files))


def _module(kind: EgressKind) -> Any:
    return importlib.import_module(_MODULES[kind])


def _twice(what: str) -> Refused:
    return Refused(Deny(reason=Reason.PROFILE_INVALID, rule="profile.credentials", detail=f"{what} is supplied twice"))
