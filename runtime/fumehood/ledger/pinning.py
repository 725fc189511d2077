"""The verbs about tool pins, from checked fields to rows and back.

Attack: the worker parses what servers say, and once it is taken over it would accept for them. So a decision is taken only by a
ledger that was started for one command of the operator's, which serves no stranger; and the mode that trusts first sights comes
from the operator's configuration with the ledger's briefing, never with a request.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fumehood.faults import Refused
from fumehood.model import Deny
from fumehood.reasons import Reason
from fumehood.store import pins
from fumehood.store.database import Database, Transaction

READS = frozenset({"pins_of", "pins", "pin_text"})
DECISIONS = frozenset({"pin_accept", "pin_reject", "pins_forget"})
VERBS = READS | DECISIONS | {"pins_seen"}
_FIRST = dict.fromkeys(("server", "profile", "tool", "capabilities"), "")
Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinning:
    """How the operator wants pins kept. `review`: nothing is accepted at first sight; `otherwise` are the servers of the other mode.

    `decides`: decisions are taken at all.
    """

    review: bool = False
    otherwise: frozenset[str] = field(default_factory=frozenset)
    decides: bool = False

    def reviews(self, server: str) -> bool:
        """Whether only what an operator has accepted counts for this server."""
        return self.review != (server in self.otherwise)

    def opened(self, conn: Transaction, fields: Fields) -> str | None:
        """Whether the call whose record is being opened may run by its pin: in one transaction with the opening."""
        if fields["pin"] is None:
            return None
        of = fields["pin_of"] or {"server": "", "capabilities": ""}
        place = pins.Place(profile=fields["profile"], **of)
        return pins.state(conn, place, fields["tool"] or "", fields["pin"], review=self.reviews(of["server"])).value

    def answer(self, database: Database, verb: str, fields: Fields) -> Any:
        """Answer one of `VERBS`. Raises FumehoodError."""
        if verb == "pins_seen":
            return self._seen(database, fields)
        if verb in DECISIONS:
            return self._decided(database, verb, fields)
        with database.read() as conn:
            match verb:
                case "pins_of":
                    return pins.states(conn, _place(fields), fields["after"], review=self.reviews(fields["server"]))
                case "pins":
                    page = pins.pins(conn, fields["after"] or _FIRST)
                    return {**page, "review": self.review, "otherwise": sorted(self.otherwise)}
                case _:
                    return pins.text_of(conn, fields["server"], fields["pin"])

    def _seen(self, database: Database, fields: Fields) -> dict[str, str]:
        place, definitions, review = _place(fields), fields["definitions"], self.reviews(fields["server"])
        with database.read() as conn:
            known = pins.is_known(conn, place, definitions)
        if not known:
            if not database.reserve.fill():
                raise Refused(_deny(Reason.STATE_UNAVAILABLE, "the disk has no room for another definition"))
            try:
                with database.write(durable=True) as conn:
                    pins.see(conn, place, definitions, fields["declared"], review=review, at_s=time.time())
            except pins.FullError as error:
                remedy = "`fumehood pins forget` drops servers that are no more."
                raise Refused(_deny(Reason.STATE_UNAVAILABLE, str(error), remedy)) from error
        with database.read() as conn:
            return {
                each["tool"]: pins.state(conn, place, each["tool"], pins.pin_of(each["text"]), review=review).value
                for each in definitions
            }

    def _decided(self, database: Database, verb: str, fields: Fields) -> Any:
        if not self.decides:
            raise Refused(_deny(Reason.NOT_ALLOWED, "pins are accepted and rejected by the operator's own commands alone"))
        with database.write(durable=True) as conn:
            if verb == "pins_forget":
                return {"forgotten": pins.forget(conn, fields["server"], fields["profile"])}
            done = pins.accept(conn, fields, at_s=time.time()) if verb == "pin_accept" else pins.reject(conn, fields)
        if not done:
            detail = f"the definition of {fields['tool']} is not (any more) the one that was named"
            raise Refused(_deny(Reason.PIN_UNKNOWN, detail, "Look at it again: `fumehood pins diff`."))
        return None


def _place(fields: Fields) -> pins.Place:
    return pins.Place(server=fields["server"], profile=fields["profile"], capabilities=fields["capabilities"])


def _deny(reason: Reason, detail: str, remedy: str | None = None) -> Deny:
    return Deny(reason=reason, rule="ledger.pins", detail=detail, remedy=remedy)
