"""Documents into the one value that everything else uses: `model.Profile`, every default filled in. Pure.

A profile that `extends` another is the other with its own fields laid over it: maps field by field, lists and single
values whole. One level: a profile that is extended extends nothing, so a reader looks into two files at most.
Here, and not in the models, is judged what fields mean together.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from fumehood.model import (
    ArgumentBounds,
    Ask,
    CommitMode,
    Excuse,
    Filesystem,
    Limits,
    OnHidden,
    OnSecret,
    Oversize,
    Pool,
    Profile,
    ReadOnlyMount,
    Scope,
    SeccompPolicy,
    Secrets,
    SessionLife,
    UserNamespace,
    WorkspaceMode,
    digest_of,
)
from fumehood.profile.documents import DISK_UNLIMITED, Allow, ProfileDocument
from fumehood.profile.fields import Strict
from fumehood.profile.labels import labels
from fumehood.profile.network import credentials, network
from fumehood.profile.network import judge as judge_network
from fumehood.profile.problems import Problem
from fumehood.profile.source import Path, Source

# `scope`, because a call's connection to a remote server ends with it; `credentials`, because `upstream` names the one there is.
_BOX = (
    "image", "command", "scope", "session", "pool", "engine", "runtime", "filesystem", "seccomp", "environment", "credentials",
    "devices", "user_namespace", "accept_risk",
)  # fmt: skip
_BOX_LIMITS = ("cpu", "memory", "pids", "output", "disk", "open_files", "boxes")
_OVERLAID = ("limits", "filesystem", "tools", "resources", "prompts", "network", "arguments", "secrets", "ask", "session", "pool")


def merge(parent: ProfileDocument, child: ProfileDocument) -> ProfileDocument:
    """The child laid over the parent."""
    fields: dict[str, Any] = {}
    for name in child.model_fields_set:
        value = getattr(child, name)
        if name in _OVERLAID and name in parent.model_fields_set:
            value = _overlay(getattr(parent, name), value)
        elif name in ("environment", "credentials", "labels", "cost"):
            value = {**getattr(parent, name), **value}
        fields[name] = value
    return parent.model_copy(update=fields)


def _overlay(parent: Strict, child: Strict) -> Strict:
    fields: dict[str, Any] = {}
    for name in child.model_fields_set:
        before, value = getattr(parent, name), getattr(child, name)
        fields[name] = _overlay(before, value) if isinstance(value, Strict) and isinstance(before, Strict) else value
    return parent.model_copy(update=fields)


def judge(document: ProfileDocument, source: Source) -> list[Problem]:
    """Combinations that cannot be: errors of a whole (merged) document, at the lines of the file that was asked for."""
    limits, files = document.limits, document.filesystem
    unlimited = limits.disk == DISK_UNLIMITED
    found: list[tuple[bool, Path, str]] = [
        (document.image is None and not document.remote, ("image",), "expected an image's name; there is no default"),
        *_of_a_box(document),
        (
            files.workspace == "direct" and not unlimited,
            ("filesystem", "workspace"),
            "expected `limits.disk: unlimited` beside `direct`: no limit of ours holds on the host's file system",
        ),
        (
            unlimited and files.workspace != "direct",
            ("limits", "disk"),
            f"expected a size: `unlimited` is for `filesystem.workspace: direct`, and this is {files.workspace}",
        ),
        (
            files.commit != "auto" and files.workspace != "rw",
            ("filesystem", "commit"),
            f"expected `filesystem.workspace: rw` beside `commit: {files.commit}`; {files.workspace} commits nothing",
        ),
        (
            limits.idle is not None and limits.idle > limits.wall,
            ("limits", "idle"),
            "expected at most `limits.wall`: a longer silence can never be reached",
        ),
        (
            "session" in document.model_fields_set and document.scope != "session",
            ("session",),
            "expected `scope: session` beside it",
        ),
        (
            document.session.idle > document.session.lifetime,
            ("session", "idle"),
            "expected at most `session.lifetime`",
        ),
        (
            document.scope == "session" and files.commit == "ask",
            ("filesystem", "commit"),
            "expected auto or never beside `scope: session`: a session's changes land when it ends",
        ),
        (
            len({mount.name for mount in files.mounts}) != len(files.mounts),
            ("filesystem", "mounts"),
            "expected each mount's name once",
        ),
    ]
    found += _of_a_pool(document)
    problems = [source.problem(path, message) for wrong, path, message in found if wrong]
    problems += [source.problem(path, message) for path, message in judge_network(document)]
    for number, pattern in enumerate(files.protect):
        if pattern.startswith("/") or ".." in pattern.split("/") or not pattern:
            path = ("filesystem", "protect", number)
            problems.append(source.problem(path, f"expected a pattern relative to the workspace, found {pattern!r}"))
    return problems


def _of_a_box(document: ProfileDocument) -> list[tuple[bool, Path, str]]:
    """What says something of a box, in a profile for servers that have none."""
    said: list[Path] = [(field,) for field in _BOX if field in document.model_fields_set]
    said += [("limits", field) for field in _BOX_LIMITS if field in document.limits.model_fields_set]
    said += [("network", "egress")] if document.network.egress else []
    message = "expected nothing beside `remote: true`: the server runs elsewhere, in no box"
    return [(document.remote, path, message) for path in said]


def _of_a_pool(document: ProfileDocument) -> list[tuple[bool, Path, str]]:
    """What a server that is started before its call can not have: anything of the call's own (rule 27)."""
    ahead, path = document.pool.started > 0, ("pool", "started")
    visible = [name for name, use in document.credentials.items() if use.deliver != "gate"]
    workspace = document.filesystem.workspace
    return [
        (ahead and document.scope != "call", path, "expected `scope: call` beside it: a session keeps its own server"),
        (
            ahead and workspace != "none",
            path,
            f"expected `filesystem.workspace: none` beside it: a server that runs cannot be given a {workspace} workspace",
        ),
        (
            ahead and bool(visible),
            path,
            f"expected `deliver: gate` for {', '.join(visible)}: a server that runs has its files and variables already",
        ),
    ]


def profile(name: str, document: ProfileDocument, seccomp: SeccompPolicy) -> Profile:
    """The value of a judged document."""
    limits, files = document.limits, document.filesystem
    unlimited = limits.disk == DISK_UNLIMITED
    value = Profile(
        name=name,
        digest="",
        image=document.image or "",
        command=document.command,
        scope=Scope(document.scope),
        tools=_names(document.tools),
        resources=_names(document.resources),
        prompts=_names(document.prompts),
        completion=document.completion,
        arguments=ArgumentBounds(
            string_bytes=document.arguments.string,
            items=document.arguments.items,
            depth=document.arguments.depth,
            values=document.arguments.values,
            open=document.arguments.open,
        ),
        secrets=Secrets(
            arguments=OnSecret(document.secrets.arguments),
            bodies=OnSecret(document.secrets.bodies),
            outputs=OnSecret(document.secrets.outputs),
            hidden=OnHidden(document.secrets.hidden),
            allow=tuple(Excuse(rule=each.rule, where=each.where, reason=each.reason) for each in document.secrets.allow),
        ),
        ask=Ask(
            elicitation=document.ask.elicitation,
            sampling=document.ask.sampling,
            roots=document.ask.roots,
            most=document.ask.most,
            wait_s=document.ask.wait,
        ),
        session=SessionLife(
            idle_s=document.session.idle, lifetime_s=document.session.lifetime, approvals=document.session.approvals
        ),
        pool=Pool(started=document.pool.started, idle_s=document.pool.idle, age_s=document.pool.age),
        results=Oversize(document.results),
        engine=document.engine,
        runtime=document.runtime,
        limits=Limits(
            cpu=float(limits.cpu),
            memory_bytes=limits.memory,
            pids=limits.pids,
            wall_s=limits.wall,
            idle_s=limits.idle,
            output_bytes=limits.output,
            result_bytes=limits.result,
            disk_bytes=0 if unlimited else limits.disk,
            disk_unlimited=unlimited,
            tmp_bytes=files.tmp,
            open_files=limits.open_files,
            boxes=limits.boxes,
        ),
        filesystem=Filesystem(
            workspace=WorkspaceMode(files.workspace),
            commit=CommitMode(files.commit),
            protect=files.protect,
            mounts=tuple(ReadOnlyMount(source=mount.source, name=mount.name) for mount in files.mounts),
        ),
        seccomp=seccomp,
        environment=tuple(sorted(document.environment.items())),
        user_namespace=UserNamespace(document.user_namespace),
        accept_risk=document.accept_risk,
        network=network(document.network),
        credentials=credentials(document),
        labels=labels(document.labels),
        cost=tuple(sorted(document.cost.items())),
    )
    return replace(value, digest=profile_digest(value))


def profile_digest(value: Profile) -> str:
    """`sha256:<hex>` of everything a profile means; what it and its seccomp file are called does not count."""
    facts = asdict(value)
    del facts["name"], facts["digest"]
    facts["seccomp"] = value.seccomp.digest
    for kind in ("tools", "resources", "prompts"):
        facts[kind] = None if facts[kind] is None else sorted(facts[kind])
    return digest_of(facts)


def _names(allow: Allow) -> frozenset[str] | None:
    return None if allow.allow == "*" else frozenset(allow.allow)
