"""A profile for people: `shown` as the file with every default filled in, `sentences` as what a tool can and cannot do.

Pure. Every sentence follows from the value that runs; nothing is said of what this release does not enforce.
"""

from __future__ import annotations

from typing import Any

from fumehood.model import (
    ArgumentBounds,
    CommitMode,
    OnHidden,
    OnSecret,
    Oversize,
    Profile,
    Scope,
    UserNamespace,
    WorkspaceMode,
)
from fumehood.profile.explain_labels import said_of_labels, shown_labels
from fumehood.profile.explain_network import said_of_network, shown_credentials, shown_network
from fumehood.profile.units import duration_text, size_text

_UNIX_SOCKET = 1


def shown(value: Profile) -> dict[str, Any]:
    """The profile as a file that says everything; it loads to the same digest."""
    if not value.image:
        return _shown_remote(value)
    limits, files = value.limits, value.filesystem
    return {
        "image": value.image,
        "command": list(value.command),
        "scope": value.scope.value,
        **_asked_and_asking(value),
        **({"session": _session(value)} if value.scope is Scope.SESSION else {}),
        **({"pool": _pool(value)} if value.scope is Scope.CALL and value.filesystem.workspace is WorkspaceMode.NONE else {}),
        "results": value.results.value,
        "engine": value.engine,
        "runtime": value.runtime,
        "limits": {
            "cpu": limits.cpu,
            "memory": size_text(limits.memory_bytes),
            "pids": limits.pids,
            "wall": duration_text(limits.wall_s),
            "idle": None if limits.idle_s is None else duration_text(limits.idle_s),
            "output": size_text(limits.output_bytes),
            "result": size_text(limits.result_bytes),
            "disk": "unlimited" if limits.disk_unlimited else size_text(limits.disk_bytes),
            "open_files": limits.open_files,
            **({} if limits.boxes is None else {"boxes": limits.boxes}),
        },
        "filesystem": {
            "workspace": files.workspace.value,
            "commit": files.commit.value,
            "protect": list(files.protect),
            "mounts": [{"source": mount.source, "name": mount.name} for mount in files.mounts],
            "tmp": size_text(limits.tmp_bytes),
        },
        "seccomp": value.seccomp.name,
        **shown_labels(value),
        "environment": dict(value.environment),
        "network": shown_network(value),
        "credentials": shown_credentials(value),
        "devices": [],
        "user_namespace": value.user_namespace.value,
        "accept_risk": list(value.accept_risk),
    }


def sentences(value: Profile) -> list[str]:
    """What a tool under this profile can and cannot do."""
    if not value.image:
        return [*_where_it_is(value), *_what_may_be_called(value), *said_of_labels(value), *_remote_bounds(value)]
    return [*_what_runs(value), *_what_may_be_called(value), *said_of_labels(value), *_files(value), *_rest(value), *_bounds(value)]


def _what_runs(value: Profile) -> list[str]:
    command = f"`{' '.join(value.command)}`" if value.command else "the command that the caller gives"
    per_call = value.scope is Scope.CALL
    life = value.session
    box = (
        "Every call runs in a box of its own, used once."
        if per_call
        else "All calls of one client's session share a box, frozen between them, which is removed after"
        f" {duration_text(life.idle_s)} without a call and {duration_text(life.lifetime_s)} in all."
        + (" What a person must agree to runs there too." if life.approvals else "")
    )
    pool = value.pool
    ahead = (
        f"Up to {pool.started} servers stand by, started and frozen and without a way out, each for one call; none after"
        f" {duration_text(pool.idle_s)} without a call, or older than {duration_text(pool.age_s)}."
    )
    engine = f"by the {value.engine} engine" if value.engine else "by whichever engine the host has"
    runtime = f" with {value.runtime}" if value.runtime else ""
    namespace = (
        "It runs in a user namespace of its own, or not at all."
        if value.user_namespace is UserNamespace.ALWAYS
        else "It runs in a user namespace of its own wherever the engine can make one."
    )
    waiting = [ahead] if pool.started else []
    risks = [f"It runs despite the known risks {', '.join(value.accept_risk)}."] if value.accept_risk else []
    return [f"It runs {command} in the image {value.image}, boxed {engine}{runtime}.", box, *waiting, namespace, *risks]


def _what_may_be_called(value: Profile) -> list[str]:
    lines = []
    for kind, what in (("tools", "tool"), ("resources", "resource"), ("prompts", "prompt")):
        allowed: frozenset[str] | None = getattr(value, kind)
        if allowed is None:
            lines.append(f"Clients can use every {what} that the server has, also ones that an upgrade adds.")
        elif allowed:
            lines.append(f"Clients can use the {kind} {', '.join(sorted(allowed))}, and see no other.")
        else:
            lines.append(f"Clients can use no {what}.")
    if value.completion:
        lines.append("Clients can have arguments of these prompts and resource templates completed.")
    if value.tools is None or value.tools:
        lines.append(_arguments(value.arguments))
    lines += _secrets(value)
    asked = (("its user", value.ask.elicitation), ("its model", value.ask.sampling), ("its roots", value.ask.roots))
    asks = [name for name, may in asked if may]
    if asks:
        lines.append(
            f"In mid-call it can put up to {value.ask.most} questions to the client, for {' and '.join(asks)}, and"
            f" {'is frozen' if value.image else 'has no lease'} for up to {duration_text(value.ask.wait_s)} until each is answered."
        )
    else:
        lines.append("In mid-call it can ask the client nothing.")
    return lines


def _arguments(bounds: ArgumentBounds) -> str:
    most = f"{size_text(bounds.string_bytes)} a string, {bounds.items} items a place, {bounds.depth} levels, {bounds.values} values"
    if "*" in bounds.open:
        return f"Arguments are bounded ({most}), and may hold anything where a tool's schema leaves objects open."
    opened = f", but at {', '.join(bounds.open)}" if bounds.open else ""
    return f"Arguments are bounded ({most}), and hold nothing that the tool's schema does not describe{opened}."


def _secrets(value: Profile) -> list[str]:
    """What becomes of secrets that are found."""
    secrets = value.secrets
    refused = {
        OnSecret.BLOCK: "Calls with a secret in their arguments are refused",
        OnSecret.ASK: "Calls with a secret in their arguments need an approval",
        OnSecret.REDACT: "Secrets in arguments are removed before a call is judged",
        OnSecret.ALLOW: "Arguments may hold known formats of secrets, but no issued credential",
    }[secrets.arguments]
    out = {
        OnSecret.BLOCK: "a result with one is not given",
        OnSecret.REDACT: "those in results are replaced by a marker",
        OnSecret.ALLOW: "of results only issued credentials are removed",
    }[secrets.outputs]
    lines = [f"{refused}; {out}."]
    if any(rule.credential is not None for rule in value.network.rules):
        lines.append(
            {
                OnSecret.BLOCK: "A request that a credential is written into is refused if another secret is in it.",
                OnSecret.REDACT: "Other secrets are blanked out of requests that a credential is written into.",
                OnSecret.ALLOW: "Requests that a credential is written into may hold known formats of secrets.",
            }[secrets.bodies]
        )
    lines.append(
        {
            OnHidden.MARK: "Hidden characters in what it says are written out.",
            OnHidden.BLOCK: "A result with hidden characters is not given.",
            OnHidden.ALLOW: "It may say what nobody sees, in hidden characters.",
        }[secrets.hidden]
    )
    lines += [f"A {each.rule} at {each.where} is taken for none: {each.reason}" for each in secrets.allow]
    return lines


def _files(value: Profile) -> list[str]:
    files, limits = value.filesystem, value.limits
    disk = size_text(limits.disk_bytes)
    workspace = {
        WorkspaceMode.NONE: "It sees no directory of the host.",
        WorkspaceMode.RO: "It can read the caller's directory at /workspace and change nothing in it.",
        WorkspaceMode.SCRATCH: f"It has an empty /workspace of at most {disk}, which is thrown away.",
        WorkspaceMode.RW: f"It can read the caller's directory at /workspace and change at most {disk} of it, in a copy"
        " on write; without a directory, /workspace is empty and thrown away.",
        WorkspaceMode.DIRECT: "It can read and write the caller's directory at /workspace itself, without any limit;"
        " what it did stays when the call fails.",
    }[files.workspace]
    tmp = size_text(limits.tmp_bytes)
    lines = [f"It can read its image and write only to /tmp ({tmp}) and its workspace.", workspace]
    if files.workspace is WorkspaceMode.RW:
        lines.append(
            {
                CommitMode.AUTO: "When a call succeeds its changes are applied to the directory; otherwise discarded.",
                CommitMode.ASK: "Its changes wait for `fumehood commit` or `fumehood discard`.",
                CommitMode.NEVER: "Its changes are listed and discarded.",
            }[files.commit]
        )
        if files.protect and files.commit is not CommitMode.NEVER:
            lines.append(f"Changes to {', '.join(files.protect)} are not applied without approval.")
    lines += [f"It can read {mount.source} at /mnt/{mount.name}." for mount in files.mounts]
    return lines


def _rest(value: Profile) -> list[str]:
    sockets = any(
        rule.action == "allow"
        and "socket" in rule.names
        and any(test.index == 0 and test.value == _UNIX_SOCKET for test in rule.tests)
        for rule in value.seccomp.rules
    )
    names = ", ".join(name for name, _ in value.environment)
    return [
        *said_of_network(value),
        "It can make UNIX sockets." if sockets else "It cannot make UNIX sockets other than unnamed pairs.",
        f"It can make the system calls of the seccomp file `{value.seccomp.name}`.",
        "It cannot mount, trace, load code into the kernel, make namespaces or set setuid bits.",
        f"It finds {names or 'nothing of yours'} in its environment.",
    ]


def _bounds(value: Profile) -> list[str]:
    limits = value.limits
    idle = f", and after {duration_text(limits.idle_s)} of silence" if limits.idle_s is not None else ""
    return [
        f"It is ended after {duration_text(limits.wall_s)}{idle}.",
        f"It can use {limits.cpu:g} CPU and {size_text(limits.memory_bytes)} of memory.",
        f"It can have {limits.pids} processes and threads, and {limits.open_files} open files in each process.",
        *([] if limits.boxes is None else [f"Of its boxes {limits.boxes} live at once; further calls wait."]),
        f"Of each output stream {size_text(limits.output_bytes)} is kept.",
        f"A result may have {size_text(limits.result_bytes)}"
        + ("; a larger one is kept and linked to." if value.results is Oversize.SPILL else "."),
    ]


def _asked_and_asking(value: Profile) -> dict[str, Any]:
    """What clients may ask of a server, and a server of its client: of a box's and of a remote one alike."""
    return {
        **{kind: {"allow": _names(getattr(value, kind))} for kind in ("tools", "resources", "prompts")},
        "completion": value.completion,
        "arguments": {
            "string": size_text(value.arguments.string_bytes),
            "items": value.arguments.items,
            "depth": value.arguments.depth,
            "values": value.arguments.values,
            "open": list(value.arguments.open),
        },
        "secrets": {
            "arguments": value.secrets.arguments.value,
            "bodies": value.secrets.bodies.value,
            "outputs": value.secrets.outputs.value,
            "hidden": value.secrets.hidden.value,
            "allow": [{"rule": each.rule, "where": each.where, "reason": each.reason} for each in value.secrets.allow],
        },
        "ask": {
            "elicitation": value.ask.elicitation,
            "sampling": value.ask.sampling,
            "roots": value.ask.roots,
            "most": value.ask.most,
            "wait": duration_text(value.ask.wait_s),
        },
    }


def _shown_remote(value: Profile) -> dict[str, Any]:
    limits = value.limits
    return {
        "remote": True,
        **_asked_and_asking(value),
        "results": value.results.value,
        "limits": {
            "wall": duration_text(limits.wall_s),
            "idle": None if limits.idle_s is None else duration_text(limits.idle_s),
            "result": size_text(limits.result_bytes),
        },
        "network": {"limits": shown_network(value)["limits"]},
        **shown_labels(value),
    }


def _where_it_is(value: Profile) -> list[str]:
    where = "where `upstream` of the configuration says" if value.upstream is None else f"at {value.upstream}"
    return [
        f"It runs {where}, out of our hands: every call reaches it through a gate of its own, and nothing runs here.",
        "It gets the call's name and arguments, and the credential that `upstream` names; nothing of the client's own.",
    ]


def _remote_bounds(value: Profile) -> list[str]:
    limits = value.limits
    idle = f", and after {duration_text(limits.idle_s)} of silence" if limits.idle_s is not None else ""
    more = "; a larger one is kept and linked to." if value.results is Oversize.SPILL else "."
    return [
        f"A call is given up after {duration_text(limits.wall_s)}{idle}.",
        f"A result may have {size_text(limits.result_bytes)}{more}",
    ]


def _session(value: Profile) -> dict[str, Any]:
    life = value.session
    return {"idle": duration_text(life.idle_s), "lifetime": duration_text(life.lifetime_s), "approvals": life.approvals}


def _pool(value: Profile) -> dict[str, Any]:
    pool = value.pool
    return {"started": pool.started, "idle": duration_text(pool.idle_s), "age": duration_text(pool.age_s)}


def _names(allowed: frozenset[str] | None) -> list[str] | str:
    return "*" if allowed is None else sorted(allowed)
