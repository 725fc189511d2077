"""What would let a refused call through, a line at a time, and what that line would risk. Pure.

For `fumehood why`. Attack: an operator who is told only the line to add adds it. So each comes with what a tool that is fooled could
then do, in terms of this very profile: what it reaches, what it holds. Names in a record were chosen by strangers; they are quoted as
JSON, which YAML reads as the same text, so that no name can add a second line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fumehood.denial import Denial, Way
from fumehood.model import Limits, Profile, WorkspaceMode
from fumehood.profile.units import duration_text, size_text
from fumehood.reasons import Reason
from fumehood.screening.known import ISSUED

# `rule at place`, as a refusal for a secret tells it.
_FOUND = re.compile(r"\b([a-z0-9-]+) at (\S+?)(?:,|$| and )")
# What a profile may say at most.
_MOST_STRING, _MOST_DEPTH, _MOST_VALUES, _MOST_BYTES = 2**24, 60, 500_000, 2**30
_NEGLIGIBLE = "Nothing beyond what the profile allows already; the host pays for it."


def ways(denial: Denial, profile: Profile | None) -> list[Way]:
    """What would have let this call through; nothing where the request itself is what is wrong."""
    found = _WAYS.get(denial.reason)
    return [] if found is None else list(found(denial, profile))


def egress_ways(entries: Iterable[Mapping[str, Any]], profile: Profile) -> list[Way]:
    """What would have let through what the gate refused: one way for each place, in the order that they were asked for."""
    found: dict[str, Way] = {}
    for entry in entries:
        facts = entry["facts"]
        made = _EGRESS.get(facts.get("why", "")) if entry["kind"] == "refused" else None
        way = None if made is None else made(facts, profile)
        if way is not None:
            found.setdefault(way.line, way)
    return list(found.values())


def reach(profile: Profile) -> str:
    """What a fooled tool under the profile has to do harm with, as the end of a sentence."""
    files = {
        WorkspaceMode.NONE: "no directory of the host",
        WorkspaceMode.RO: "the workspace to read",
        WorkspaceMode.RW: "the workspace to read and change",
        WorkspaceMode.SCRATCH: "no directory of the host",
        WorkspaceMode.DIRECT: "the workspace to read and change, directly",
    }[profile.filesystem.workspace]
    if profile.upstream is not None:
        files = f"the remote server {profile.upstream}"
    names = sorted({rule.name for rule in profile.network.rules}) if profile.upstream is None else []
    network = f"the network places {', '.join(names)}" if names else "no network" if profile.upstream is None else ""
    held = [use.source for use in profile.credentials]
    credentials = f"the credential{'s' if len(held) > 1 else ''} {', '.join(held)}" if held else ""
    return ", ".join(filter(None, (files, network, credentials)))


def _quoted(text: str | None) -> str:
    return json.dumps(text or "", ensure_ascii=True)


def _file(denial: Denial, profile: Profile | None) -> str:
    return f"profile {profile.name if profile is not None else denial.asked.profile}"


_LISTS = {"tool": "tools", "prompt": "prompts", "resource": "resources"}


def _allow(denial: Denial, profile: Profile | None) -> Iterator[Way]:
    where, kind = _file(denial, profile), denial.asked.kind
    if kind == "completion":
        yield Way(where=where, line="completion: true", risk="The server's completions run its code with what the client types.")
        return
    member = _LISTS.get(kind)
    if member is None:
        return
    before = sorted(getattr(profile, member) or ()) if profile is not None else []
    listed = ", ".join(_quoted(name) for name in [*before, denial.asked.name or ""])
    having = f"with {reach(profile)}" if profile is not None else "with whatever the profile gives it"
    risk = f"Whoever talks to the model can have the {kind} {_quoted(denial.asked.name)} used, with any arguments that fit, {having}."
    yield Way(where=where, line=f"{member}: {{allow: [{listed}]}}", risk=risk)


def _pins(denial: Denial, _: Profile | None) -> Iterator[Way]:
    yield Way(
        where="shell", line="fumehood pins diff",
        risk="None: it shows what the definition says, and what is new in it.",
    )  # fmt: skip
    yield Way(
        where="shell", line="fumehood pins accept",
        risk=f"The model reads the new words of {_quoted(denial.asked.name)} as it reads yours: accept only what you have read.",
    )  # fmt: skip


def _arguments(denial: Denial, profile: Profile | None) -> Iterator[Way]:
    where = _file(denial, profile)
    if denial.rule == "profile.arguments" and profile is not None:
        bounds = profile.arguments
        string, items = min(2 * bounds.string_bytes, _MOST_STRING), min(2 * bounds.items, _MOST_VALUES)
        depth, values = min(2 * bounds.depth, _MOST_DEPTH), min(2 * bounds.values, _MOST_VALUES)
        line = f"arguments: {{string: {size_text(string)}, items: {items}, depth: {depth}, values: {values}}}"
        yield Way(where=where, line=line, risk="Larger arguments take longer to judge, here and in the server.")
    elif denial.rule == "gateway.schema" and denial.asked.kind == "tool":
        risk = "The server gets members that its schema does not describe, unjudged: what it does with them nobody has reviewed."
        yield Way(where=where, line=f"arguments: {{open: [{_quoted(denial.asked.name)}]}}", risk=risk)


def _secret(denial: Denial, profile: Profile | None) -> Iterator[Way]:
    if (found := _FOUND.search(denial.detail)) is None or found[1] == ISSUED:
        return  # one that was issued here is never let through
    where = f"{denial.asked.name}{found[2]}" if denial.asked.kind == "tool" and found[2].startswith("/") else "*"
    line = f'secrets: {{allow: [{{rule: {_quoted(found[1])}, where: {_quoted(where)}, reason: "why it is none"}}]}}'
    risk = "Whatever looks like that goes to the server from there on, also where it is a secret of somebody's."
    yield Way(where=_file(denial, profile), line=line, risk=risk)


def _limit(write: Callable[[Limits], str]) -> Callable[[Denial, Profile | None], Iterator[Way]]:
    def found(denial: Denial, profile: Profile | None) -> Iterator[Way]:
        if profile is not None:
            yield Way(where=_file(denial, profile), line=f"limits: {{{write(profile.limits)}}}", risk=_NEGLIGIBLE)

    return found


def _result(denial: Denial, profile: Profile | None) -> Iterator[Way]:
    yield from _limit(lambda limits: f"result: {size_text(min(2 * limits.result_bytes, _MOST_BYTES))}")(denial, profile)
    yield Way(
        where=_file(denial, profile), line="results: spill",
        risk="Long results are kept for a day on this host, for their sender to read in parts.",
    )  # fmt: skip


def _input(denial: Denial, profile: Profile | None) -> Iterator[Way]:
    where = _file(denial, profile)
    yield Way(where=where, line="ask: {elicitation: true}", risk="The server can put questions of its own wording to the user.")
    risk = "The server can have the client's model write for it, at the client's cost."
    yield Way(where=where, line="ask: {sampling: true}", risk=risk)


def _parked(denial: Denial, profile: Profile | None) -> Iterator[Way]:
    if profile is not None:
        line = f"ask: {{wait: {duration_text(2 * profile.ask.wait_s)}}}"
        yield Way(where=_file(denial, profile), line=line, risk="Boxes that wait for people take memory, and places, for longer.")


def _workspace(denial: Denial, profile: Profile | None) -> Iterator[Way]:
    if denial.rule != "profile.filesystem.workspace":
        risk = "Callers other than you can have boxes work on what is below it, as far as it is theirs."
        yield Way(where="fumehood.yaml", line="workspace_roots: [/srv/work]", risk=risk)
        return
    where = _file(denial, profile)
    yield Way(where=where, line="filesystem: {workspace: ro}", risk="The tool reads everything in the directory, `.git` and all.")
    risk = "The tool can change files there when its call succeeds; `commit: ask` has you see each change first."
    yield Way(where=where, line="filesystem: {workspace: rw, commit: ask}", risk=risk)


def _kept_changes(denial: Denial, _: Profile | None) -> Iterator[Way]:
    yield Way(where="shell", line=f"fumehood diff {denial.task}", risk="None: it shows what the call would have changed.")
    yield Way(where="shell", line=f"fumehood commit {denial.task}", risk="What the diff shows becomes files of yours.")


def _command(line: str, risk: str, where: str = "shell") -> Callable[[Denial, Profile | None], Iterator[Way]]:
    def found(_: Denial, __: Profile | None) -> Iterator[Way]:
        yield Way(where=where, line=line, risk=risk)

    return found


def _image(_: Denial, profile: Profile | None) -> Iterator[Way]:
    if profile is not None:
        risk = "What its recipe names is fetched and put into it."
        yield Way(where="shell", line=f"fumehood image build {profile.image}", risk=risk)


def _risk(denial: Denial, profile: Profile | None) -> Iterator[Way]:
    risk = "A tool that knows the hole can leave its box; upgrading the runtime closes it instead."
    yield Way(where=_file(denial, profile), line="accept_risk: [...]  # the ids that the detail names", risk=risk)


_WAYS: Mapping[Reason, Callable[[Denial, Profile | None], Iterator[Way]]] = {
    Reason.TOOL_NOT_ALLOWED: _allow,
    Reason.NOT_ALLOWED: _allow,
    Reason.TOOL_UNREVIEWED: _pins,
    Reason.TOOL_CHANGED: _pins,
    Reason.TOOL_REJECTED: _pins,
    Reason.ARGUMENTS_INVALID: _arguments,
    Reason.SECRET_IN_ARGUMENTS: _secret,
    Reason.WALL: _limit(lambda limits: f"wall: {duration_text(2 * limits.wall_s)}"),
    Reason.IDLE: _limit(lambda limits: f"idle: {duration_text(2 * (limits.idle_s or 30))}"),
    Reason.MEMORY: _limit(lambda limits: f"memory: {size_text(2 * limits.memory_bytes)}"),
    Reason.OUTPUT: _limit(lambda limits: f"output: {size_text(min(2 * limits.output_bytes, _MOST_BYTES))}"),
    Reason.RESULT_TOO_LARGE: _result,
    Reason.INPUT_REQUIRED: _input,
    Reason.PARKED: _parked,
    Reason.WORKSPACE_MISSING: _workspace,
    Reason.WORKSPACE_NOT_ALLOWED: _workspace,
    Reason.COMMIT_REFUSED: _kept_changes,
    Reason.COMMIT_FAILED: _kept_changes,
    Reason.IMAGE_MISSING: _image,
    Reason.RISK_NOT_ACCEPTED: _risk,
    Reason.BUSY: _command("boxes: 32", "More boxes at once share the host's memory and processors.", "fumehood.yaml"),
    Reason.STOPPED: _command("fumehood start", "Calls begin again, whatever the stop was for."),
    Reason.UNENFORCEABLE: _command("fumehood doctor", "None: it says what this host cannot enforce, and how it could."),
    Reason.ENGINE_UNAVAILABLE: _command("fumehood doctor", "None: it says which engines work, and why others do not."),
}


def _named(facts: Mapping[str, Any], profile: Profile) -> Way | None:
    name, port = facts.get("name"), facts.get("port")
    if not isinstance(name, str) or not name:
        return None
    ports = f", ports: [{port}]" if isinstance(port, int) and port != 443 else ""
    held = reach(profile)
    risk = f"Whatever the tool holds ({held}) can be sent to {_quoted(name)}, and what that answers reaches the model."
    return Way(where=f"profile {profile.name}", line=f"network: {{egress: [{{tls: {_quoted(name)}{ports}}}]}}", risk=risk)


def _requested(facts: Mapping[str, Any], profile: Profile) -> Way | None:
    name, asked = facts.get("name"), facts.get("asked")
    if not isinstance(name, str) or not isinstance(asked, str):
        return None
    uses = [rule.credential for rule in profile.network.rules if rule.name == name and rule.credential is not None]
    having = f", with the credential {', '.join(uses)}" if uses else ""
    line = f"allow: [{_quoted(asked.partition('?')[0])}]  # in the rule of {_quoted(name)}"
    return Way(where=f"profile {profile.name}", line=line, risk=f"A fooled tool can make this request too{having}.")


def _addressed(facts: Mapping[str, Any], profile: Profile) -> Way | None:
    name, addresses = facts.get("name"), facts.get("addresses")
    if not isinstance(name, str) or not isinstance(addresses, Mapping) or not addresses:
        return None
    found = ", ".join(_quoted(str(each)) for each in addresses)
    risk = "The name's owner decides which of these it leads to: name no network with services that trust whoever is inside."
    return Way(where=f"profile {profile.name}", line=f"addresses: [{found}]  # in the rule of {_quoted(name)}", risk=risk)


_EGRESS: Mapping[str, Callable[[Mapping[str, Any], Profile], Way | None]] = {
    "name_not_listed": _named,
    "port_not_listed": _named,
    "sni_mismatch": _named,
    "http_not_allowed": _requested,
    "address_not_allowed": _addressed,
}
