"""What becomes of a secret that was found: as the profile's `secrets` says, and never less than this.

A format is a guess: it may be an example in a document, so an operator can excuse it, by rule, place and reason, or not have it looked
for (`allow`). An issued credential is none: whatever the profile says of formats, one in arguments or in a body is at least refused,
and one in what comes out is at least removed, also that of the call itself, which a tool that got it in a file or a variable may
honestly print. Nobody excuses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fumehood.model import Finding, OnHidden, OnSecret, Outcome, Result, Secrets, ToolCall
from fumehood.reasons import Reason
from fumehood.screening.hidden import RULE as HIDDEN
from fumehood.screening.hidden import marked_values, shows_all
from fumehood.screening.known import ISSUED, KnownSecrets
from fumehood.screening.values import Heard, Tally, found, redacted, redacted_bytes

_SHOWN = 5


def arguments_rule(secrets: Secrets, rule: str) -> OnSecret:
    """What becomes of arguments with this in them."""
    return OnSecret.BLOCK if rule == ISSUED and secrets.arguments is OnSecret.ALLOW else secrets.arguments


def bodies_rule(secrets: Secrets, rule: str) -> OnSecret:
    """What becomes of a request with this in it that an injected credential goes with."""
    return OnSecret.BLOCK if rule == ISSUED and secrets.bodies is OnSecret.ALLOW else secrets.bodies


def heard_in(secrets: Secrets, setting: OnSecret, tool: str | None, *, arguments: bool = False) -> Heard:
    """Which findings count where `setting` holds: all that are not excused; of what is allowed, issued credentials alone."""
    own = None if tool is None else tool.replace("~", "~0").replace("/", "~1")
    everywhere = {each.rule for each in secrets.allow if each.where in {"*", own}}
    below = [(each.rule, each.where.removeprefix(own)) for each in secrets.allow if own and each.where.startswith(f"{own}/")]

    def heard(rule: str, place: str) -> bool:
        if rule == ISSUED:
            return True
        if setting is OnSecret.ALLOW or rule in everywhere:
            return False
        return not (arguments and any(rule == name and f"{place}/".startswith(f"{at}/") for name, at in below))

    return heard


def said(findings: Iterable[Finding]) -> str:
    """Findings for a line of text: rules and places."""
    every = list(findings)
    shown = ", ".join(f"{each.rule} at {each.place or 'the value'}" for each in every[:_SHOWN])
    return shown if len(every) <= _SHOWN else f"{shown} and {len(every) - _SHOWN} more"


def facts(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings for a record."""
    return [{"rule": each.rule, "place": each.place, "count": each.count} for each in findings]


def recorded(call: ToolCall, known: KnownSecrets) -> ToolCall:
    """A call as its record may name it, which is opened before anything is judged: no secret in its name or its command."""
    argv = call.arguments.get("argv") if call.tool is None else None
    program = argv[:1] if isinstance(argv, list | tuple) else None
    named = (call.tool, program)
    (tool, command), findings = redacted(named, known, heard_in(call.profile.secrets, call.profile.secrets.arguments, call.named))
    return replace(call, tool=tool, arguments={**call.arguments, "argv": command}) if findings else call


def told(detail: str, known: KnownSecrets) -> str:
    """A line of an outcome's, which may quote arguments or what came out, without any secret: nothing excuses one in a record."""
    line: str = redacted(detail, known, lambda _, __: True)[0]
    return line


def for_people(arguments: Any, known: KnownSecrets) -> Any:
    """Arguments as somebody is asked about them, and as that is kept: without any secret, also one that may stay in the call."""
    return redacted(arguments, known, lambda _, __: True)[0]


class Screen:
    """What one call's texts are held against, and the tally of what was found in what came out of it."""

    def __init__(self, call: ToolCall, known: KnownSecrets) -> None:
        """Find nothing yet."""
        self.known = known
        self._secrets = call.profile.secrets
        self._in = heard_in(self._secrets, self._secrets.arguments, call.named, arguments=True)
        self.out = heard_in(self._secrets, self._secrets.outputs, call.named)
        self._tally = Tally()

    def in_arguments(self, value: Any) -> tuple[Finding, ...]:
        """The secrets in what a call is asked to do."""
        return found(value, self.known, self._in)

    def redacted_arguments(self, value: Any) -> Any:
        """The same without them, where the profile has them removed."""
        return redacted(value, self.known, self._in)[0] if self._secrets.arguments is OnSecret.REDACT else value

    def passing(self, value: Any) -> Any:
        """A part of what comes out, fit to be passed on at once: what would block the whole is removed from it."""
        made, findings = redacted(value, self.known, self.out)
        self.count(findings)
        return made if self._secrets.hidden is OnHidden.ALLOW else self._shown(made)

    def count(self, findings: Iterable[Finding]) -> None:
        """Have findings told with the outcome."""
        for each in findings:
            self._tally.add(each.rule, each.place, each.count)

    def outcome(self, outcome: Outcome, *, from_server: bool) -> Outcome:
        """An outcome as it may be kept and told. `from_server`: its value is what a server said, whose hidden characters count."""
        value, findings = redacted(outcome.value, self.known, self.out)
        self.count(findings)
        detail, _ = redacted(outcome.detail, self.known, self.out)  # it quotes what is counted where it stands
        made = replace(outcome, value=value, detail=detail)
        stdout, printed = redacted_bytes(outcome.stdout, "stdout", self.known, self.out)
        stderr, complained = redacted_bytes(outcome.stderr, "stderr", self.known, self.out)
        self.count((*printed, *complained))
        made = replace(made, stdout=stdout, stderr=stderr)
        if self._secrets.outputs is OnSecret.BLOCK and (secret := self._found(hidden=False)):
            return self._blocked(made, Reason.SECRET_IN_RESULT, "secrets.outputs", secret)
        if from_server and self._secrets.hidden is not OnHidden.ALLOW:
            made = replace(made, value=self._shown(made.value))
            if self._secrets.hidden is OnHidden.BLOCK and (unseen := self._found(hidden=True)):
                return self._blocked(made, Reason.HIDDEN_IN_RESULT, "secrets.hidden", unseen)
        return replace(made, found=self._tally.findings)

    def _shown(self, value: Any) -> Any:
        if shows_all(value):
            return value
        return marked_values(value, lambda place, count: self._tally.add(HIDDEN, place, count))

    def _found(self, *, hidden: bool) -> list[Finding]:
        return [each for each in self._tally.findings if (each.rule == HIDDEN) is hidden]

    def _blocked(self, outcome: Outcome, reason: Reason, rule: str, findings: list[Finding]) -> Outcome:
        """The outcome without anything that came out; why it ended otherwise stays the reason."""
        empty = replace(outcome, value=None, stdout=b"", stderr=b"", found=self._tally.findings)
        if outcome.result is not Result.OK:
            return empty
        return replace(empty, result=Result.FAILED, reason=reason, rule=rule, detail=said(findings))
