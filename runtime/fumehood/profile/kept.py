"""Profiles as they were resolved last time, so that an ordinary start imports neither pydantic nor a YAML parser (0.2 s).

An entry is JSON: the resolved profile, the trace of every file lookup it was made from, and the code that made it. It
is used only when each of these lookups, made again with the same trusted reads, finds the same text, or finds nothing
where nothing was: so ownership, modes and the order of folders are judged anew at every start, and a file that now
shadows another, or became unsafe, sends the load the slow way, which takes or refuses it as ever. Anything that is
not as expected means the same: no entry. An entry can make a load fast; it can never make one fail.

What an entry says is believed, as the compiled filters beside it are: they lie in a folder that only root can enter,
and the entry is read as a file that only this process's own user could have written. What is checked is its form,
because a full disk or another release may leave anything there. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from fumehood import __version__
from fumehood.faults import FumehoodError
from fumehood.model import (
    ArgumentBounds,
    ArgumentTest,
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
    SeccompRule,
    Secrets,
    SessionLife,
    UserNamespace,
    WorkspaceMode,
)
from fumehood.profile.files import Files, Lookup, is_path
from fumehood.reach import (
    CredentialUse,
    Delivery,
    EgressKind,
    EgressRule,
    Network,
    NetworkLimits,
    Scheme,
)
from fumehood.safe_files import read_trusted

ENTRY_BYTES = 2**20
ENTRIES = 64  # a script that names a new path at every call must not fill the disk

_HERE = Path(__file__).parent
_FIELDS: dict[type, set[str]] = {
    kind: {each.name for each in fields(kind)}
    for kind in (
        Profile, ArgumentBounds, Secrets, Excuse, Ask, SessionLife, Pool, Limits, Filesystem, ReadOnlyMount, SeccompPolicy,
        SeccompRule, ArgumentTest, Network, NetworkLimits, EgressRule, CredentialUse,
    )
}  # fmt: skip
Kind = TypeVar("Kind")


def code_digest(sources: Iterable[Path]) -> str:
    """What stands for the code that makes profiles: this release, and its files as they are on disk."""
    seen = [(source.name, status.st_size, status.st_mtime_ns) for source in sources for status in (source.stat(),)]
    return hashlib.sha256(json.dumps([__version__, sorted(seen)]).encode()).hexdigest()


# Taken when this module is imported, before those that parse: an upgrade meanwhile must not sign the old code's work.
_OTHERS = ("model.py", "reach.py", "screening/formats.json")
_CODE = code_digest((*_HERE.glob("*.py"), *(_HERE.parent / name for name in _OTHERS)))


def recall(kept: Path, asked: str, folders: Sequence[Path], uid: int) -> Profile | None:
    """The profile kept for this question, if everything it was made from is still as it was."""
    files = Files(folders, uid)
    try:
        # The process's own uid, not the caller's: no caller writes entries.
        stored = json.loads(read_trusted(_entry(kept, asked, files), os.getuid(), limit_bytes=ENTRY_BYTES))
        if stored["code"] != _CODE or not stored["trace"]:
            return None
        unchanged = all(files.found_as(Lookup(*lookup)) for lookup in stored["trace"])
        return decoded(stored["profile"]) if unchanged else None
    except (OSError, FumehoodError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def keep(kept: Path, asked: str, files: Files, profile: Profile) -> None:
    """Keep a profile with the trace of the files it was made from. Where that cannot be done nothing is lost."""
    text = json.dumps({"code": _CODE, "trace": files.trace, "profile": encoded(profile)}, separators=(",", ":"))
    entry = _entry(kept, asked, files)
    temporary = entry.with_name(f".{os.urandom(8).hex()}")
    with suppress(OSError, ValueError):
        if len(text) > ENTRY_BYTES or decoded(json.loads(text)["profile"]) != profile:
            return
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(text)
            temporary.rename(entry)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _forget_oldest(kept)


def encoded(profile: Profile) -> dict[str, Any]:
    """The profile as JSON can hold it."""
    return {
        **{name: getattr(profile, name) for name in _FIELDS[Profile]},
        **{kind: _listed(getattr(profile, kind)) for kind in ("tools", "resources", "prompts")},
        "arguments": asdict(profile.arguments),
        "secrets": asdict(profile.secrets),
        "ask": asdict(profile.ask),
        "session": asdict(profile.session),
        "pool": asdict(profile.pool),
        "limits": asdict(profile.limits),
        "filesystem": asdict(profile.filesystem),
        "seccomp": profile.seccomp.fields(),
        "network": asdict(profile.network),
        "credentials": [asdict(use) for use in profile.credentials],
        "labels": [[name, *labels] for name, labels in profile.labels],
    }


def decoded(stored: object) -> Profile:
    """The profile that was encoded. Raises ValueError for anything that was not."""
    has = _map_of(Profile, stored)
    return Profile(
        name=_as(str, has["name"]),
        digest=_as(str, has["digest"]),
        image=_as(str, has["image"]),
        command=_texts(has["command"]),
        scope=Scope(has["scope"]),
        tools=_names(has["tools"]),
        resources=_names(has["resources"]),
        prompts=_names(has["prompts"]),
        completion=_as(bool, has["completion"]),
        arguments=_arguments(has["arguments"]),
        secrets=_secrets(has["secrets"]),
        ask=_ask(has["ask"]),
        session=_session(has["session"]),
        pool=_pool(has["pool"]),
        results=Oversize(has["results"]),
        engine=_text_or_none(has["engine"]),
        runtime=_text_or_none(has["runtime"]),
        limits=_limits(has["limits"]),
        filesystem=_filesystem(has["filesystem"]),
        seccomp=_policy(has["seccomp"]),
        environment=tuple(_pair(pair) for pair in _as(list, has["environment"])),
        user_namespace=UserNamespace(has["user_namespace"]),
        accept_risk=_texts(has["accept_risk"]),
        network=_network(has["network"]),
        credentials=tuple(_use(use) for use in _as(list, has["credentials"])),
        upstream=_text_or_none(has["upstream"]),
        labels=tuple((name, tuple(labels)) for name, *labels in map(_texts, _as(list, has["labels"]))),
        cost=tuple(_cost(pair) for pair in _as(list, has["cost"])),
    )


def _entry(kept: Path, asked: str, files: Files) -> Path:
    # A relative path is another question in another directory.
    asked = str(Path(asked).absolute()) if is_path(asked) else asked
    question = json.dumps([asked, [str(folder) for folder in files.folders], files.uid])
    return kept / f"{hashlib.sha256(question.encode()).hexdigest()}.json"


def _forget_oldest(kept: Path) -> None:
    written = sorted((path.stat().st_mtime_ns, path) for path in kept.iterdir())
    for _, path in written[:-ENTRIES]:
        path.unlink(missing_ok=True)


def _arguments(stored: object) -> ArgumentBounds:
    has = _map_of(ArgumentBounds, stored)
    return ArgumentBounds(
        string_bytes=_as(int, has["string_bytes"]),
        items=_as(int, has["items"]),
        depth=_as(int, has["depth"]),
        values=_as(int, has["values"]),
        open=_texts(has["open"]),
    )


def _secrets(stored: object) -> Secrets:
    has = _map_of(Secrets, stored)
    excuses = [_map_of(Excuse, each) for each in _as(list, has["allow"])]
    return Secrets(
        arguments=OnSecret(has["arguments"]),
        bodies=OnSecret(has["bodies"]),
        outputs=OnSecret(has["outputs"]),
        hidden=OnHidden(has["hidden"]),
        allow=tuple(
            Excuse(rule=_as(str, each["rule"]), where=_as(str, each["where"]), reason=_as(str, each["reason"])) for each in excuses
        ),
    )


def _ask(stored: object) -> Ask:
    has = _map_of(Ask, stored)
    return Ask(
        elicitation=_as(bool, has["elicitation"]),
        sampling=_as(bool, has["sampling"]),
        roots=_as(bool, has["roots"]),
        most=_as(int, has["most"]),
        wait_s=_as(float, has["wait_s"]),
    )


def _session(stored: object) -> SessionLife:
    has = _map_of(SessionLife, stored)
    approvals = _as(bool, has["approvals"])
    return SessionLife(idle_s=_as(float, has["idle_s"]), lifetime_s=_as(float, has["lifetime_s"]), approvals=approvals)


def _pool(stored: object) -> Pool:
    has = _map_of(Pool, stored)
    return Pool(started=_as(int, has["started"]), idle_s=_as(float, has["idle_s"]), age_s=_as(float, has["age_s"]))


def _limits(stored: object) -> Limits:
    has = _map_of(Limits, stored)
    return Limits(
        cpu=_as(float, has["cpu"]),
        memory_bytes=_as(int, has["memory_bytes"]),
        pids=_as(int, has["pids"]),
        wall_s=_as(float, has["wall_s"]),
        idle_s=None if has["idle_s"] is None else _as(float, has["idle_s"]),
        output_bytes=_as(int, has["output_bytes"]),
        result_bytes=_as(int, has["result_bytes"]),
        disk_bytes=_as(int, has["disk_bytes"]),
        disk_unlimited=_as(bool, has["disk_unlimited"]),
        tmp_bytes=_as(int, has["tmp_bytes"]),
        open_files=_as(int, has["open_files"]),
        boxes=None if has["boxes"] is None else _as(int, has["boxes"]),
    )


def _filesystem(stored: object) -> Filesystem:
    has = _map_of(Filesystem, stored)
    mounts = [_map_of(ReadOnlyMount, mount) for mount in _as(list, has["mounts"])]
    return Filesystem(
        workspace=WorkspaceMode(has["workspace"]),
        commit=CommitMode(has["commit"]),
        protect=_texts(has["protect"]),
        mounts=tuple(ReadOnlyMount(source=_as(str, at["source"]), name=_as(str, at["name"])) for at in mounts),
    )


def _policy(stored: object) -> SeccompPolicy:
    has = _map_of(SeccompPolicy, stored)
    default = has["default_errno"]
    return SeccompPolicy(
        name=_as(str, has["name"]),
        default_errno=None if default is None else _as(int, default),
        rules=tuple(_rule(rule) for rule in _as(list, has["rules"])),
    )


def _rule(stored: object) -> SeccompRule:
    has = _map_of(SeccompRule, stored)
    tests = [_map_of(ArgumentTest, test) for test in _as(list, has["tests"])]
    return SeccompRule(
        names=_texts(has["names"]),
        action=_as(str, has["action"]),
        errno=_as(int, has["errno"]),
        tests=tuple(
            ArgumentTest(
                index=_as(int, test["index"]), op=_as(str, test["op"]),
                value=_as(int, test["value"]), mask=_as(int, test["mask"]),
            )
            for test in tests
        ),
    )  # fmt: skip


def _network(stored: object) -> Network:
    has = _map_of(Network, stored)
    limits = _map_of(NetworkLimits, has["limits"])
    rate = limits["bytes_per_second"]
    return Network(
        rules=tuple(_egress_rule(rule) for rule in _as(list, has["rules"])),
        limits=NetworkLimits(
            connections=_as(int, limits["connections"]),
            bytes_out=_as(int, limits["bytes_out"]),
            bytes_in=_as(int, limits["bytes_in"]),
            bytes_per_second=None if rate is None else _as(int, rate),
            dns_per_second=_as(int, limits["dns_per_second"]),
        ),
    )


def _egress_rule(stored: object) -> EgressRule:
    has = _map_of(EgressRule, stored)
    return EgressRule(
        kind=EgressKind(has["kind"]),
        name=_as(str, has["name"]),
        ports=tuple(_as(int, port) for port in _as(list, has["ports"])),
        addresses=_texts(has["addresses"]),
        allow=None if has["allow"] is None else _texts(has["allow"]),
        credential=_text_or_none(has["credential"]),
        insecure=_as(bool, has["insecure"]),
        labels=_texts(has["labels"]),
    )


def _use(stored: object) -> CredentialUse:
    has = _map_of(CredentialUse, stored)
    return CredentialUse(
        name=_as(str, has["name"]),
        source=_as(str, has["source"]),
        deliver=Delivery(has["deliver"]),
        header=_text_or_none(has["header"]),
        query=_text_or_none(has["query"]),
        scheme=Scheme(has["scheme"]),
        username=_text_or_none(has["username"]),
        scope=_as(dict, has["scope"]),
        variable=_text_or_none(has["variable"]),
        file=_text_or_none(has["file"]),
    )


def _map_of(kind: type, value: object) -> dict[str, Any]:
    """A map with exactly a value type's fields: a default must not stand in for what is missing."""
    if not isinstance(value, dict) or value.keys() != _FIELDS[kind]:
        raise ValueError(f"not the fields of {kind.__name__}")
    return value


def _as(kind: type[Kind], value: object) -> Kind:
    """Exactly this type: `true` is no 1, and 1 no 1.0, or the digests of two equal profiles would differ."""
    if type(value) is not kind:
        raise ValueError(f"not {kind.__name__}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_as(str, text) for text in _as(list, value))


def _pair(value: object) -> tuple[str, str]:
    name, text = _texts(value)
    return name, text


def _cost(value: object) -> tuple[str, int]:
    name, cost = _as(list, value)
    return _as(str, name), _as(int, cost)


def _text_or_none(value: object) -> str | None:
    return None if value is None else _as(str, value)


def _names(value: object) -> frozenset[str] | None:
    return None if value is None else frozenset(_texts(value))


def _listed(names: frozenset[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)
