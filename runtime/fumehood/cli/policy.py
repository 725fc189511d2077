"""`fumehood policy check|show|test|forget`: who may call what. `explain` and `replay` are in `policy_explain`.

Files are read with the operator's rights, by the code that starts and reloads; what is in records and conversations is asked of a
ledger process, when these rights are given up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.cli import policy_explain
from fumehood.cli.policy_files import AsJson, Configured, Files, chosen_policy, rule_facts, write
from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from fumehood.policies.cases import Case
    from fumehood.policies.cedar import Rule
    from fumehood.policies.policy import Policy

FAILED, WRONG = 1, 125


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Who may call what, in Cedar (docs/policy.md).")
    for name, command in (("check", check), ("show", show), ("test", run_cases), ("forget", forget)):
        group.command(name)(command)
    group.command("explain")(policy_explain.explain)
    group.command("replay")(policy_explain.replay_)
    app.add_typer(group, name="policy")


def check(files: Files = None, *, config: Configured = None, as_json: AsJson = False) -> None:
    """Check policies as a gateway would that starts: all that is wrong, with file and line. Exit 125 when something is."""
    from fumehood.policies.cedar import PolicyError

    problems: Sequence[str] = ()
    policy = None
    try:
        policy = chosen_policy(files, config)
    except PolicyError as error:
        problems = error.problems
    rules = () if policy is None else policy.rules.rules
    if as_json:
        said = {"policies": len(rules), "digest": policy and policy.digest, "problems": list(problems)}
        typer.echo(json.dumps(said, indent=2))
    else:
        for problem in problems:
            typer.echo(problem, err=True)
        if policy is not None:
            typer.echo(f"{len(rules)} policies are valid; together they are {policy.digest}")
    if problems:
        raise typer.Exit(WRONG)


def show(
    files: Files = None,
    *,
    conversations: Annotated[
        bool, typer.Option("--conversations", help="What senders' conversations and workspaces hold, and what budgets are used.")
    ] = False,
    config: Configured = None,
    as_json: AsJson = False,
) -> None:
    """Print the policies in force, ours marked, and the budgets; or what conversations hold by now."""
    if conversations:
        from fumehood.cli.tasks import asking_ledger

        with asking_ledger() as ask:
            held = ask("conversations", {})
        write(held, _held(held), as_json=as_json)
        return
    policy = chosen_policy(files, config)
    said = {
        "digest": policy.digest, "kept_s": policy.config.kept_s,
        "policies": [rule_facts(rule) | {"text": rule.text} for rule in policy.rules.rules],
        "budgets": [asdict(each) for each in policy.config.budgets],
    }  # fmt: skip
    lines = [f"// {rule.id}: {_origin(rule)}\n{rule.text}\n" for rule in policy.rules.rules]
    lines += [_budget(each) for each in policy.config.budgets]
    write(said, lines or ["no policy: nobody may call anything"], as_json=as_json)


def run_cases(files: Files = None, *, config: Configured = None, as_json: AsJson = False) -> None:
    """Try the cases that are kept beside the policies (NAME.cases.yaml). Exit 1 when one fails, or there is none."""
    from fumehood.policies.deciding import rule_on

    policy = chosen_policy(files, config)
    touched: set[str] = set()
    results = []
    for file, case in _cases(policy):
        ruling = rule_on(policy.rules, case.question())
        ids = [rule.id for rule in ruling.rules]
        touched.update(ids)
        right = ruling.decision == case.expect and (case.rule is None or case.rule in ids) and not ruling.errors
        results.append({
            "file": file, "name": case.name, "passed": right, "expected": case.expect, "decision": ruling.decision.value, "rules": ids,
            "rule": case.rule, "errors": list(ruling.errors),
        })  # fmt: skip
    untouched = [rule_facts(rule) for rule in policy.rules.rules if rule.id not in touched and not rule.shipped]
    failed = [each for each in results if not each["passed"]]
    lines = [_failed(each) for each in failed]
    lines += [f"no case is decided by {each['id']} ({each['where']})" for each in untouched]
    lines.append(f"{len(results) - len(failed)} of {len(results)} cases come out as expected")
    write({"cases": results, "untouched": untouched}, lines, as_json=as_json)
    if failed or not results:
        raise typer.Exit(FAILED)




def forget(
    sender: Annotated[str, typer.Argument(metavar="SENDER", help="The sender, as records have it: a user's name, http:NAME.")],
    *,
    as_json: AsJson = False,
) -> None:
    """End a sender's conversation: what its calls did and returned no longer counts. Workspaces stay what they are."""
    from fumehood import launch
    from fumehood.cli.tasks import ledger_asker

    with launch.serving(replace(launch.settings(), decides=True), broker=False) as processes:
        count = ledger_asker(processes)("conversation_forget", {"sender": sender})["forgotten"]
    told = "its conversation begins anew" if count else "nothing was remembered of it"
    write({"sender": sender, "forgotten": count}, [f"{sender}: {told}"], as_json=as_json)



def _cases(policy: Policy) -> Iterator[tuple[str, Case]]:
    """The cases beside the operator's files. Raises FumehoodError."""
    from fumehood.policies import cases
    from fumehood.profile.problems import Problems
    from fumehood.safe_files import list_trusted, read_trusted

    folders = dict.fromkeys(Path(source.name).parent for source in policy.texts.sources if not source.shipped)
    for folder in folders:
        for name in list_trusted(folder, os.getuid()):
            if name.endswith(cases.SUFFIX):
                file = str(folder / name)
                try:
                    yield from ((file, case) for case in cases.read(read_trusted(file, os.getuid()), file))
                except Problems as problems:
                    raise FumehoodError(Reason.POLICY_INVALID, str(problems)) from None








def _failed(result: Mapping[str, Any]) -> str:
    by = f" by {', '.join(result['rules'])}" if result["rules"] else ""
    wanted = f" by {result['rule']}" if result["rule"] else ""
    return f"{result['file']}: {result['name']}: expected {result['expected']}{wanted}, found {result['decision']}{by}"



def _budget(budget: Any) -> str:
    from fumehood.profile.units import duration_text

    about = "".join(f", {name} {' '.join(given)}" for name in ("senders", "groups", "tools") if (given := getattr(budget, name)))
    each = f" for each {' and '.join(budget.each)}" if budget.each else " in all"
    then = "asks" if budget.ask else "denies"
    return f"budget {budget.name}: {budget.most:g} {budget.unit.value} in {duration_text(budget.per_s)}{each}{about}; then {then}"


def _held(held: Mapping[str, Any]) -> list[str]:
    from fumehood.cli.records_view import shown, when

    lines = []
    for row in held["taints"]:
        kind, _, what = row["place"].partition(":")
        who = json.loads(what)[1] if kind == "sender" else what
        lines.append(f"{shown(f'{kind} {who}')}: {row['label']}, since {when(row['at'])}")
    lines += [f"budget {row['budget']}: {row['used']:g} used, {shown(row['key'])}" for row in held["budgets"]]
    return lines or ["no conversation holds anything"]


def _origin(rule: Rule) -> str:
    return f"ships with fumehood, {rule.where}" if rule.shipped else rule.where
