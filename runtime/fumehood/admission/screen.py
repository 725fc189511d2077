"""Do the arguments hold a secret? Judged for every call of every front door, before policy, in what would be sent. Pure.

Where the profile has secrets removed (`arguments: redact`) that is the front door's to do, before anything judges the call: what is
sent must be what was judged. So one that is still found here is refused.
"""

from __future__ import annotations

from dataclasses import replace

from fumehood.model import Decision, Deny, Finding, OnSecret, Screened, Verdict, Verified
from fumehood.reasons import Reason
from fumehood.screening.judging import Screen, arguments_rule, said
from fumehood.screening.known import KnownSecrets

RULE = "secrets.arguments"


def check(verified: Verified, argv: tuple[str, ...], known: KnownSecrets) -> Screened | Deny:
    """The call, if what it asks holds no secret or may. `argv` is the command line that it brings itself."""
    call = verified.call
    screen = Screen(call, known)
    findings = [*screen.in_arguments(call.arguments), *_named(screen.in_arguments(call.tool), "the name")]
    if argv and list(argv) != call.arguments.get("argv"):
        findings += _named(screen.in_arguments(list(argv)), "argv")
    found = [(each, arguments_rule(call.profile.secrets, each.rule)) for each in findings]
    refused = [each for each, what in found if what in (OnSecret.BLOCK, OnSecret.REDACT)]
    if refused:
        return Deny(reason=Reason.SECRET_IN_ARGUMENTS, rule=RULE, detail=said(refused))
    return Screened(
        call=call, image=verified.image, findings=tuple(findings), asks=any(what is OnSecret.ASK for _, what in found)
    )


def weigh(verdict: Verdict | Deny) -> Verdict | Deny:
    """The verdict, in which somebody is asked if what was found says so: the strictest wins."""
    if isinstance(verdict, Deny) or not isinstance(verdict.verified, Screened) or not verdict.verified.asks:
        return verdict
    why = f"Its arguments hold what looks like a secret: {said(verdict.verified.findings)}."
    if verdict.decision is Decision.ALLOW:
        return replace(verdict, decision=Decision.ASK, rule=RULE, why=(*verdict.why, why))
    return replace(verdict, why=(*verdict.why, why))


def _named(findings: tuple[Finding, ...], place: str) -> list[Finding]:
    return [replace(each, place=f"{place}{each.place}") for each in findings]
