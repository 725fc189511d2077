"""What is valid in a profile and still deserves a look: warnings with positions. Pure.

The first question of a reviewer is whether a profile that `extends` another allows more than it; so every widening is
named, by the same values that run. The rest are settings without effect, and ones that people regret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from fumehood.model import CommitMode, Profile, Scope, UserNamespace, WorkspaceMode
from fumehood.profile import lint_network, lint_secrets
from fumehood.profile.loader import Loaded
from fumehood.profile.problems import Problem
from fumehood.profile.source import Path
from fumehood.profile.units import duration_text, size_text

Finding = tuple[Path, str]

# What a loader, an interpreter or git runs before the tool's own first line.
_CODE_LOADERS = re.compile(
    r"LD_PRELOAD|LD_AUDIT|LD_LIBRARY_PATH|NODE_OPTIONS|PYTHONSTARTUP|PYTHONHOME|BASH_ENV|ENV|PERL5OPT|RUBYOPT"
    r"|GIT_SSH_COMMAND|GIT_EXTERNAL_DIFF|JAVA_TOOL_OPTIONS"
)
_SECRETS = re.compile(r".*(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|PRIVATE_?KEY|CREDENTIALS?)(_.*)?", re.IGNORECASE)
_LIMITS: tuple[tuple[Path, str, Callable[[Any], str]], ...] = (
    (("limits", "cpu"), "cpu", "{:g}".format),
    (("limits", "memory"), "memory_bytes", size_text),
    (("limits", "pids"), "pids", str),
    (("limits", "wall"), "wall_s", duration_text),
    (("limits", "output"), "output_bytes", size_text),
    (("limits", "result"), "result_bytes", size_text),
    (("limits", "open_files"), "open_files", str),
    (("filesystem", "tmp"), "tmp_bytes", size_text),
)
_ARGUMENTS: tuple[tuple[Path, str, Callable[[Any], str]], ...] = (
    (("arguments", "string"), "string_bytes", size_text),
    (("arguments", "items"), "items", str),
    (("arguments", "depth"), "depth", str),
    (("arguments", "values"), "values", str),
)
_REACH = [WorkspaceMode.NONE, WorkspaceMode.SCRATCH, WorkspaceMode.RO, WorkspaceMode.RW, WorkspaceMode.DIRECT]
_COMMIT = [CommitMode.NEVER, CommitMode.ASK, CommitMode.AUTO]


def findings(loaded: Loaded, credentials: frozenset[str] | None = None) -> list[Problem]:
    """The warnings about a profile that loads, in the order of its lines. `credentials` are those of the configuration, if known."""
    found = list(_widening(loaded.parent, loaded.profile)) if loaded.parent else []
    found += _without_effect(loaded)
    found += _regretted(loaded.profile)
    if credentials is not None:
        found += lint_network.unknown(loaded.profile, credentials)
    problems = [loaded.source.problem(path, message, level="warning") for path, message in found]
    return sorted(problems, key=lambda problem: (problem.line, problem.column, problem.message))


def _widening(parent: Profile, child: Profile) -> Iterator[Finding]:
    """Where the child allows more than the profile that it extends."""
    more = f"widens {parent.name}: "
    yield from _widening_names(parent, child, more)
    yield from _widening_limits(parent, child, more)
    yield from _widening_files(parent, child, more)
    yield from lint_secrets.widening(parent, child, more)
    yield from lint_network.widening(parent, child, more)
    yield from _widening_labels(parent, child, more)
    risks = sorted(set(child.accept_risk) - set(parent.accept_risk))
    loosened = child.user_namespace is UserNamespace.WHEN_POSSIBLE and parent.user_namespace is UserNamespace.ALWAYS
    other_calls = f"{more}other system calls ({child.seccomp.name} instead of {parent.seccomp.name})"
    checks: list[tuple[bool, Path, str]] = [
        (child.scope is Scope.SESSION and parent.scope is Scope.CALL, ("scope",), f"{more}a box for many calls"),
        (child.completion and not parent.completion, ("completion",), f"{more}completion of arguments"),
        (
            child.ask.elicitation and not parent.ask.elicitation,
            ("ask", "elicitation"),
            f"{more}questions to the user",
        ),
        (child.ask.sampling and not parent.ask.sampling, ("ask", "sampling"), f"{more}questions to the client's model"),
        (child.ask.roots and not parent.ask.roots, ("ask", "roots"), f"{more}questions for the client's roots"),
        (child.ask.most > parent.ask.most, ("ask", "most"), f"{more}{child.ask.most} questions"),
        (child.ask.wait_s > parent.ask.wait_s, ("ask", "wait"), f"{more}{duration_text(child.ask.wait_s)} of waiting"),
        (
            child.session.idle_s > parent.session.idle_s,
            ("session", "idle"),
            f"{more}{duration_text(child.session.idle_s)} without a call",
        ),
        (
            child.session.lifetime_s > parent.session.lifetime_s,
            ("session", "lifetime"),
            f"{more}sessions of {duration_text(child.session.lifetime_s)}",
        ),
        (
            child.session.approvals and not parent.session.approvals,
            ("session", "approvals"),
            f"{more}what a person must agree to in a box that earlier calls have used",
        ),
        (
            child.pool.started > parent.pool.started,
            ("pool", "started"),
            f"{more}{child.pool.started} servers that run before their call",
        ),
        (child.seccomp.digest != parent.seccomp.digest, ("seccomp",), other_calls),
        (loosened, ("user_namespace",), f"{more}a box without a user namespace"),
        (bool(risks), ("accept_risk",), f"{more}accepts {', '.join(risks)}"),
        (child.image != parent.image, ("image",), f"changes what runs: {child.image} instead of {parent.image}"),
    ]
    yield from ((path, message) for holds, path, message in checks if holds)


def _widening_names(parent: Profile, child: Profile, more: str) -> Iterator[Finding]:
    for kind in ("tools", "resources", "prompts"):
        before, now = getattr(parent, kind), getattr(child, kind)
        if before is None:
            continue
        if now is None:
            yield (kind, "allow"), f"{more}all instead of {len(before)}"
        elif now - before:
            yield (kind, "allow"), f"{more}adds {', '.join(sorted(now - before))}"


def _widening_labels(parent: Profile, child: Profile, more: str) -> Iterator[Finding]:
    now, cost = dict(child.labels), dict(child.cost)
    for name, labels in parent.labels:
        if lost := sorted(set(labels) - set(now.get(name, ()))):
            yield ("labels", name), f"{more}policies are no longer told that {name} is {', '.join(lost)}"
    for name, before in parent.cost:
        if cost.get(name, 0) < before:
            yield ("cost", name), f"{more}counts {cost.get(name, 0)} instead of {before}"


def _widening_limits(parent: Profile, child: Profile, more: str) -> Iterator[Finding]:
    for table, of, by in ((_LIMITS, child.limits, parent.limits), (_ARGUMENTS, child.arguments, parent.arguments)):
        for path, name, show in table:
            before, now = getattr(by, name), getattr(of, name)
            if now > before:
                yield path, f"{more}{show(now)} instead of {show(before)}"
    if added := [place for place in child.arguments.open if place not in parent.arguments.open]:
        yield ("arguments", "open"), f"{more}takes what no schema describes at {', '.join(added)}"
    if child.limits.disk_unlimited and not parent.limits.disk_unlimited:
        yield ("limits", "disk"), f"{more}unlimited instead of {size_text(parent.limits.disk_bytes)}"
    elif child.limits.disk_bytes > parent.limits.disk_bytes and not parent.limits.disk_unlimited:
        before, now = size_text(parent.limits.disk_bytes), size_text(child.limits.disk_bytes)
        yield ("limits", "disk"), f"{more}{now} instead of {before}"
    if parent.limits.idle_s is not None and (child.limits.idle_s is None or child.limits.idle_s > parent.limits.idle_s):
        yield ("limits", "idle"), f"{more}a longer silence than {duration_text(parent.limits.idle_s)}"


def _widening_files(parent: Profile, child: Profile, more: str) -> Iterator[Finding]:
    before, now = parent.filesystem, child.filesystem
    if _REACH.index(now.workspace) > _REACH.index(before.workspace):
        yield ("filesystem", "workspace"), f"{more}{now.workspace.value} instead of {before.workspace.value}"
    if now.workspace is WorkspaceMode.RW and _COMMIT.index(now.commit) > _COMMIT.index(before.commit):
        yield ("filesystem", "commit"), f"{more}{now.commit.value} instead of {before.commit.value}"
    if dropped := [pattern for pattern in before.protect if pattern not in now.protect]:
        yield ("filesystem", "protect"), f"{more}no longer protects {', '.join(dropped)}"
    if added := [mount.source for mount in now.mounts if mount not in before.mounts]:
        yield ("filesystem", "mounts"), f"{more}shows {', '.join(added)}"


def _without_effect(loaded: Loaded) -> Iterator[Finding]:
    own, value = loaded.own, loaded.profile
    mode = value.filesystem.workspace
    if "protect" in own.filesystem.model_fields_set and mode is not WorkspaceMode.RW:
        yield ("filesystem", "protect"), f"has no effect: a {mode.value} workspace commits nothing"
    if "disk" in own.limits.model_fields_set and mode in (WorkspaceMode.NONE, WorkspaceMode.RO):
        yield ("limits", "disk"), f"has no effect: a {mode.value} workspace cannot be written"
    if value.limits.tmp_bytes > value.limits.memory_bytes:
        yield ("filesystem", "tmp"), "is more than limits.memory, against which /tmp counts"
    if value.resources == frozenset() and "resources" in own.model_fields_set:
        yield ("resources",), "allows none, which is the default"
    if "pool" in own.model_fields_set and not value.pool.started:
        yield ("pool",), "has no effect: no server stands by unless `started` says how many"
    for place in value.arguments.open:
        if value.tools is not None and place != "*" and not any(place == name or place.startswith(f"{name}/") for name in value.tools):
            yield ("arguments", "open"), f"has no effect: {place} is no tool that `tools.allow` names"
    if "limits" in own.network.model_fields_set and not value.network.rules:
        yield ("network", "limits"), "has no effect: without `network.egress` there is no gate"
    yield from lint_network.without_effect(value)
    yield from lint_secrets.without_effect(value)


def _regretted(value: Profile) -> Iterator[Finding]:
    if value.tools is None:
        yield ("tools", "allow"), "allows tools that nobody has read yet: an upgrade of the server adds to them"
    if "*" in value.arguments.open:
        yield ("arguments", "open"), "lets a server's own schemas decide where calls may hold anything: name the tools that need it"
    if value.filesystem.workspace is WorkspaceMode.DIRECT:
        yield (
            ("filesystem", "workspace"),
            "writes straight to the host: no limit, nothing protected, nothing undone when a call fails",
        )
    if value.filesystem.workspace is WorkspaceMode.RW:
        for pattern in (".git/hooks", ".git/config"):
            if pattern not in value.filesystem.protect:
                yield ("filesystem", "protect"), f"leaves out {pattern}, from which git runs commands on the host"
    yield from lint_secrets.regretted(value)
    for name, text in value.environment:
        yield from _regretted_variable(name, text)
    if value.seccomp.name != "default":
        yield ("seccomp",), f"allows other system calls than the default ({value.seccomp.name})"
    for risk in value.accept_risk:
        yield ("accept_risk",), f"accepts {risk}: every receipt will say so"
    yield from lint_network.regretted(value)


def _regretted_variable(name: str, text: str) -> Iterator[Finding]:
    at: Path = ("environment", name)
    if _CODE_LOADERS.fullmatch(name):
        yield at, "makes a loader or interpreter run code before the tool"
    if _SECRETS.fullmatch(name) and text:
        yield at, "looks like a secret: profiles are no place for one, and every tool of the box reads it"
    if "${" in text or "$(" in text:
        yield at, "is taken literally: nothing is substituted"
