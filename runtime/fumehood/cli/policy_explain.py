"""`fumehood policy explain` and `replay`: why a call is decided as it is, and what other policies would have decided.

Records hold no arguments, so nothing that depends on these is guessed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.cli.policy_files import AsJson, Configured, Files, chosen_policy, rule_facts, write
from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from fumehood.policies.asked import Asked
    from fumehood.policies.deciding import Ruling


def explain(
    call: Annotated[str | None, typer.Argument(metavar="[SERVER/TOOL]", help="What is called.")] = None,
    *,
    task: Annotated[str | None, typer.Option(help="A recorded call instead, by its id; its arguments are not recorded.")] = None,
    sender: Annotated[str | None, typer.Option(help="Who asks, as records have it: http:NAME. Default: you.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="A group that the sender is in.")] = None,
    argument: Annotated[list[str] | None, typer.Option(metavar="NAME=JSON", help="An argument.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="untrusted, private, external; added to the profile's.")] = None,
    taint: Annotated[list[str] | None, typer.Option(help="What the conversation holds: untrusted, private.")] = None,
    done: Annotated[list[str] | None, typer.Option(metavar="SERVER/TOOL", help="What has ended well before.")] = None,
    files: Annotated[list[Path] | None, typer.Option("--file", help="Policies instead of those of the configuration.")] = None,
    config: Configured = None,
    as_json: AsJson = False,
) -> None:
    """Say what decides a call, and the smallest change that would loosen the decision."""
    from fumehood.policies.deciding import rule_on
    from fumehood.policies.flipping import flips
    from fumehood.policies.replaying import nearest

    policy = chosen_policy(files, config)
    if (task is None) == (call is None):
        raise FumehoodError(Reason.BAD_REQUEST, "name either SERVER/TOOL or --task ID")
    arguments = dict(_argument(each) for each in argument or ())
    if task is not None:
        asked = replace(_recorded(task, os.getuid()), arguments=arguments)
    else:
        case = _asked_case(call or "", sender, group or (), label or (), taint or (), done or ())
        asked = replace(_configured(case, config), arguments=arguments)
    ruling = rule_on(policy.rules, asked)
    found = flips(policy.rules, asked)
    near = nearest(policy, asked) if ruling.decision.value == "deny" else ()
    said = {
        "call": asked.resource.id, "sender": asked.sender.name, "decision": ruling.decision.value, "errors": list(ruling.errors),
        "rules": [rule_facts(rule) | {"why": rule.why} for rule in ruling.rules],
        "nearest": [rule_facts(rule) | {"text": rule.text} for rule in near],
        "flips": [{"changes": list(flip.told), "decision": flip.decision.value} for flip in found],
    }  # fmt: skip
    depending = [rule.id for rule in policy.rules.rules if rule.places is None or rule.places]
    lines = [*_explained(asked, ruling), *(f"{flip.decision.value} if {' and '.join(flip.told)}" for flip in found[:20])]
    lines += [f"its conditions are not met, {rule.id} ({rule.where}):\n{rule.text}" for rule in near if not rule.shipped]
    if ruling.decision.value == "ask":
        lines.append("allow once it is approved")
    if task is not None and depending and not arguments:
        lines.append(f"arguments are not recorded, and {', '.join(depending)} depend on them: give them with --argument")
    write(said, lines, as_json=as_json)


def replay_(
    files: Files = None,
    *,
    last: Annotated[int, typer.Option(min=1, help="How many recorded calls.")] = 200,
    config: Configured = None,
    as_json: AsJson = False,
) -> None:
    """Say what policies would have decided otherwise of the last calls. What depends on arguments is unknown: none are recorded."""
    from fumehood.policies.replaying import replay

    policy = chosen_policy(files, config)
    sets = replay(policy)
    changed, unknown, same, skipped = [], 0, 0, 0
    for record, asked, before in _records(last, os.getuid()):
        if asked is None or before is None:
            skipped += 1
            continue
        after = sets.decision(asked)
        if after is None:
            unknown += 1
        elif after == before:
            same += 1
        else:
            changed.append({
                "task": record["task"], "sender": record["sender"], "call": asked.resource.id, "before": before, "after": after.value,
            })  # fmt: skip
    said = {"changed": changed, "same": same, "unknown": unknown, "skipped": skipped, "depending": list(sets.depending)}
    lines = [f"{each['task']}  {each['sender']}  {each['call']}: {each['before']} -> {each['after']}" for each in changed]
    lines.append(f"{len(changed)} calls would be decided otherwise, {same} alike")
    if unknown:
        lines.append(f"{unknown} are unknown: {', '.join(sets.depending)} depend on arguments, which are not recorded")
    if skipped:
        lines.append(f"{skipped} never came to a policy, or began before records said what it would have seen")
    write(said, lines, as_json=as_json)


def _asked_case(
    call: str, sender: str | None, groups: Sequence[str], labels: Sequence[str], taint: Sequence[str], done: Sequence[str]
) -> Asked:
    import pwd

    from fumehood.model import Sender
    from fumehood.policies.asked import Asked
    from fumehood.policies.known import EXTERNAL, TAINTS, Conversation
    from fumehood.policies.naming import Named

    for given, known in ((labels, (*TAINTS, EXTERNAL)), (taint, TAINTS)):
        if wrong := [each for each in given if each not in known]:
            raise FumehoodError(Reason.BAD_REQUEST, f"{wrong[0]!r}: expected one of {', '.join(known)}")
    server, slash, tool = call.partition("/")
    if not (server and slash and tool):
        raise FumehoodError(Reason.BAD_REQUEST, f"{call!r} is not SERVER/TOOL")
    uid = os.getuid()
    who = Sender(uid=uid, name=sender or pwd.getpwuid(uid).pw_name, groups=tuple(groups))
    known_of = Conversation(done=frozenset(done), since=frozenset(done), taint=frozenset(taint))
    return Asked(
        sender=who, resource=Named("Tool", call, server), profile=server, owner=uid, at_s=time.time(), labels=frozenset(labels),
        conversation=known_of,
    )  # fmt: skip


def _configured(asked: Asked, config: str | None) -> Asked:
    """The question with what the profile of a configured server says of the tool. Raises FumehoodError."""
    from fumehood import config as configuration
    from fumehood.policies.labels import labels_in
    from fumehood.profile import load, search_folders

    found = configuration.load(config, os.environ, os.getuid())
    server, _, tool = asked.resource.id.partition("/")
    for each in () if found.gateway is None else found.gateway.servers:
        if each.name == server:
            profile = load(each.profile, search_folders(found.profile_folders, os.environ), os.getuid())
            return replace(asked, profile=profile.name, scope=profile.scope.value, labels=asked.labels | labels_in(profile, tool))
    return asked


def _recorded(task: str, owner: int) -> Asked:
    """The question of a recorded call. Raises FumehoodError."""
    from fumehood.cli.tasks import asking_ledger, fetch_task

    with asking_ledger() as ask:
        asked, _ = _question(fetch_task(ask, task.lower()), owner)
    if asked is None:
        detail = f"the record of {task} does not say what a policy would have seen"
        raise FumehoodError(Reason.TASK_UNKNOWN, detail, remedy="Name the call itself: SERVER/TOOL and its options.")
    return asked


def _records(last: int, owner: int) -> Iterator[tuple[Mapping[str, Any], Asked | None, str | None]]:
    from fumehood.cli.tasks import asking_ledger, fetch_task, fetch_tasks

    with asking_ledger() as ask:
        for row in fetch_tasks(ask, {}, last):
            record = fetch_task(ask, row["task"])
            yield record, *_question(record, owner)


def _question(record: Mapping[str, Any], owner: int) -> tuple[Asked | None, str | None]:
    """What a recorded call asked, and what was decided; None for what never came so far."""
    from fumehood.policies.asked import asked_by_record

    facts = {event["state"]: event["facts"] for event in record["events"]}
    seen = facts.get("verified", {}).get("asked")
    asked = None if seen is None else asked_by_record(record, seen, owner)
    if "decided" in facts:
        return asked, facts["decided"]["decision"]
    refused = (record["rule"] or "").split(".")[0] == "policy" and not (record["rule"] or "").startswith("policy.budgets.")
    return asked, "deny" if refused else None


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise FumehoodError(Reason.BAD_REQUEST, f"--argument {text!r}: expected NAME=JSON")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _explained(asked: Asked, ruling: Ruling) -> list[str]:
    lines = [f"{ruling.decision.value}: {asked.sender.name} calls {asked.resource.id}"]
    lines += [f"an error, which denies: {error}" for error in dict.fromkeys(ruling.errors)]
    lines += [
        f"{'permitted' if rule.permits else 'forbidden'} by {rule.id} ({rule.where})" + (f": {rule.why}" if rule.why else "")
        for rule in ruling.rules
    ]
    return lines if len(lines) > 1 else [*lines, "no policy permits it"]
