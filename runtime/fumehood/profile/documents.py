"""The strict models of what operators write in a profile: shape, units and ranges of each field by itself.

Unknown fields are refused, nothing is coerced (a quoted "4" is no number, a bare 512 no size), and every message says
what was expected. What fields mean together is judged in `resolve`. The JSON Schema for editors is generated from
these models, so it cannot differ from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from fumehood.profile import units
from fumehood.profile.fields import (
    AbsolutePath,
    Name,
    Reserved,
    Strict,
    Text,
    Variable,
    duration,
    expected,
    matching,
    size,
)
from fumehood.profile.labels import MAX_LABELS, Called, Cost, LabelsDocument
from fumehood.profile.network_documents import MAX_CREDENTIALS, CredentialDocument, NetworkDocument
from fumehood.screening import formats
from fumehood.screening.known import ISSUED

IMAGE_PATTERN = r"^([a-z0-9][a-z0-9._/-]{0,127}(:[A-Za-z0-9._-]{1,128})?|sha256:[0-9a-f]{64})$"
TOOL_NAME_CHARACTERS = 128
DISK_UNLIMITED = -1
REASON_WORDS = 3


def _disk(value: object) -> int:
    if value == "unlimited":
        return DISK_UNLIMITED
    try:
        count = units.bytes_of(value)
    except ValueError as error:
        raise expected(f"{error}, or `unlimited`") from None
    if not 2**16 <= count <= 2**44:  # a tmpfs of size 0 is one without limit
        raise expected(f"expected between 64KiB and 16TiB, or `unlimited`, found {value}")
    return count


def _allowed(value: object) -> Any:
    if value == "*":
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise expected('expected a list of names, or "*" for all of them')
    for name in value:
        if name == "*":
            raise expected('expected names only; for all of them write allow: "*" without a list')
        if not name or len(name) > TOOL_NAME_CHARACTERS * 16:
            raise expected(f"expected a name, found {name!r}")
    return tuple(value)


Allowed = Annotated[
    tuple[str, ...] | Literal["*"],
    BeforeValidator(_allowed),
    WithJsonSchema({"anyOf": [{"const": "*"}, {"type": "array", "items": {"type": "string"}}]}),
]


class Allow(Strict):
    """What a caller may use of one kind; nothing unless named."""

    allow: Allowed = Field(default=(), description='Names, or "*" for all. Default: none.')


class LimitsDocument(Strict):
    """What one box may use."""

    cpu: float = Field(default=1.0, ge=0.01, le=1024, description="CPUs, such as 0.5 or 2.")
    memory: Annotated[int, *size(2**23)] = Field(
        default=512 * 2**20, description="Memory with its page cache; no swap."
    )
    pids: int = Field(default=128, ge=2, le=32768, description="Processes and threads of the tool; the box's init is not counted.")
    wall: Annotated[float, *duration(0.1)] = Field(default=60.0, description="Time from the request to the result.")
    idle: Annotated[float, *duration(0.1)] | None = Field(
        default=None, description="Longest silence; null for no limit."
    )
    output: Annotated[int, *size(1, 2**30)] = Field(
        default=2**20, description="Bytes kept of each of stdout and stderr."
    )
    result: Annotated[int, *size(1024, 2**30)] = Field(default=8 * 2**20, description="Bytes of an MCP result.")
    disk: Annotated[
        int,
        BeforeValidator(_disk),
        WithJsonSchema({"anyOf": [{"const": "unlimited"}, {"type": "string", "pattern": units.SIZE_PATTERN}]}),
    ] = Field(default=256 * 2**20, description="Bytes a scratch workspace or the changes of an rw one may take.")
    open_files: int = Field(default=1024, ge=16, le=1_048_576, description="Open files of one process.")
    boxes: int | None = Field(default=None, ge=1, le=4095, description="Boxes of it at once; null: what the host bears.")


class MountDocument(Strict):
    """A host directory, read-only at /mnt/<name>."""

    source: AbsolutePath = Field(description="Absolute path, below one of `mount_roots` of fumehood.yaml.")
    name: Name = Field(description="Seen as /mnt/<name>.")


class FilesystemDocument(Strict):
    """Which files a box sees besides its image."""

    workspace: Literal["none", "ro", "rw", "scratch", "direct"] = Field(
        default="none", description="How the caller's directory is seen at /workspace."
    )
    commit: Literal["auto", "ask", "never"] = Field(
        default="auto", description="What happens to an rw workspace's changes."
    )
    protect: tuple[Text, ...] = Field(
        default=(
            ".git/hooks",
            ".git/config",
            ".vscode",
            ".idea",
            ".envrc",
            "fumehood.yaml",
            ".fumehood",
        ),
        strict=False,
        description="Workspace-relative patterns that are never committed without approval.",
    )
    mounts: tuple[MountDocument, ...] = Field(default=(), strict=False, description="Further directories, read-only.")
    tmp: Annotated[int, *size(2**16)] = Field(default=64 * 2**20, description="Size of the private /tmp.")


class AskDocument(Strict):
    """What a server may ask its client in the middle of a call; its box waits, frozen, for the answer."""

    elicitation: bool = Field(default=False, description="May it put a form or a link before the user?")
    sampling: bool = Field(default=False, description="May it have the client's model write something?")
    roots: bool = Field(
        default=False, description="Is the client asked before it is shown /workspace? It sees that or nothing, whatever the answer."
    )
    most: int = Field(default=10, ge=1, le=100, description="Questions of one call.")
    wait: Annotated[float, *duration(1)] = Field(default=300.0, description="How long one answer is waited for.")


def _opened(value: object) -> str:
    if not isinstance(value, str) or not value or "//" in value or value[0] == "/" or value[-1] == "/":
        raise expected(f'expected a tool\'s name, "TOOL/argument/member", or "*", found {value!r}')
    return value


Opened = Annotated[str, BeforeValidator(_opened)]


class ArgumentsDocument(Strict):
    """What the arguments of one call may be at most, and where they may hold what no schema describes."""

    string: Annotated[int, *size(1, 2**24)] = Field(default=2**20, description="UTF-8 bytes of one string, or of a member's name.")
    items: int = Field(default=10_000, ge=1, le=500_000, description="Items of one array, or members of one object.")
    depth: int = Field(default=32, ge=1, le=60, description="Arrays and objects inside each other; the arguments are the first.")
    values: int = Field(default=100_000, ge=1, le=500_000, description="Values in all.")
    open: tuple[Opened, ...] = Field(
        default=(),
        strict=False,
        description='Where a schema may leave objects open: a TOOL, a place (TOOL/argument/member), "*". Default: nowhere.',
    )


def _excused(value: object) -> str:
    tool, *names = value.split("/") if isinstance(value, str) else [""]
    if value != "*" and (not tool or "*" in tool or any(not name or name == "*" for name in names)):
        raise expected(f'expected "*", a tool\'s name or "TOOL/argument/member", found {value!r}')
    return str(value)


def _format(value: object) -> str:
    known = formats.rules()
    if value == ISSUED:
        raise expected("expected the name of a format: nobody excuses a credential that was issued here")
    if not isinstance(value, str) or value not in known:
        raise expected(f"expected one of {', '.join(sorted(known))}, found {value!r}")
    return value


def _reasoned(value: object) -> str:
    if not isinstance(value, str) or len(value.split()) < REASON_WORDS:
        raise expected(f"expected why it is no secret there, in {REASON_WORDS} words or more, found {value!r}")
    return value


class ExcuseDocument(Strict):
    """A format that is no secret at some place."""

    rule: Annotated[str, BeforeValidator(_format)] = Field(description="The format's name, as the refusal has it.")
    where: Annotated[str, BeforeValidator(_excused)] = Field(
        description='A tool, a place in its arguments (TOOL/argument/member, "~1" for a slash), or "*".'
    )
    reason: Annotated[str, BeforeValidator(_reasoned)] = Field(description="Why it is none there.")


class SecretsDocument(Strict):
    """What becomes of secrets that are found, and of characters that nobody sees."""

    arguments: Literal["block", "ask", "redact", "allow"] = Field(
        default="block", description="One in a call's arguments. `allow` is for formats: an issued credential is refused all the same."
    )
    bodies: Literal["block", "redact", "allow"] = Field(
        default="block", description="One in a request that the gate writes a credential into. `allow` as above."
    )
    outputs: Literal["redact", "block", "allow"] = Field(
        default="redact", description="One in a result or a stream. `allow` as above: an issued credential is removed all the same."
    )
    hidden: Literal["mark", "block", "allow"] = Field(default="mark", description="Hidden characters in what a server says.")
    allow: tuple[ExcuseDocument, ...] = Field(
        default=(), strict=False, max_length=64, description="Formats that are no secrets at some place, each with the reason."
    )


class SessionDocument(Strict):
    """How long the box of a session is kept."""

    idle: Annotated[float, *duration(1)] = Field(default=300.0, description="Without a call.")
    lifetime: Annotated[float, *duration(1)] = Field(default=3600.0, description="In all.")
    approvals: bool = Field(
        default=False, description="Whether what a person must agree to may run in a box that earlier calls have used."
    )


class PoolDocument(Strict):
    """Servers that are started ahead, each for one call: it begins without their start. Needs `scope: call` and no workspace."""

    started: int = Field(default=0, ge=0, le=64, description="How many stand by, frozen and without a way out. Default: none.")
    idle: Annotated[float, *duration(1)] = Field(default=600.0, description="None are kept after so long without a call.")
    age: Annotated[float, *duration(1)] = Field(default=1800.0, description="One that has waited so long is thrown away.")


class ProfileDocument(Strict):
    """A profile: what an operator allows a tool. Everything not named is denied."""

    extends: Name | None = Field(default=None, description="A profile whose fields this one changes; one level.")
    image: Annotated[str, *matching(IMAGE_PATTERN, "an image's name or sha256:<64 hex digits>")] | None = Field(
        default=None, description="The image's name or digest. Required, here or in the extended profile."
    )
    remote: bool = Field(
        default=False, description="For a remote server (`upstream` in fumehood.yaml): nothing runs here, so no image."
    )
    command: tuple[Text, ...] = Field(
        default=(), strict=False, description="The server's argv, unless the caller gives one."
    )
    scope: Literal["call", "session"] = Field(default="call", description="One box a call, or one a session.")
    tools: Allow = Field(default=Allow(), description="Tools that may be listed and called.")
    resources: Allow = Field(
        default=Allow(), description="Resource URIs that may be read; one that ends in `*` allows all that begin so."
    )
    prompts: Allow = Field(default=Allow(), description="Prompts that may be fetched.")
    completion: bool = Field(default=False, description="May arguments of allowed prompts and templates be completed?")
    arguments: ArgumentsDocument = Field(default=ArgumentsDocument(), description="Bounds of a call's arguments.")
    secrets: SecretsDocument = Field(default=SecretsDocument(), description="What becomes of secrets that are found.")
    ask: AskDocument = Field(default=AskDocument())
    session: SessionDocument = Field(default=SessionDocument(), description="For `scope: session`.")
    pool: PoolDocument = Field(default=PoolDocument())
    results: Literal["refuse", "spill"] = Field(
        default="refuse", description="A result over `limits.result`: an error, or kept and linked to."
    )
    engine: Literal["docker", "oci"] | None = Field(default=None, description="Default: the configuration's.")
    runtime: Literal["runc", "crun", "runsc"] | None = Field(default=None, description="Default: whichever works.")
    limits: LimitsDocument = Field(default=LimitsDocument())
    filesystem: FilesystemDocument = Field(default=FilesystemDocument())
    seccomp: Name = Field(default="default", description="A file of the profile folders' seccomp/ folder.")
    environment: dict[Variable, Text] = Field(default_factory=dict, description="Literal values; never secrets.")
    network: NetworkDocument = Field(default=NetworkDocument(), description="What the box may reach. Default: nothing.")
    credentials: dict[Name, CredentialDocument] = Field(
        default_factory=dict,
        max_length=MAX_CREDENTIALS,
        description="How credentials of fumehood.yaml are used. A rule may name one that is not here: all defaults.",
    )
    labels: dict[Called, LabelsDocument] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="What policies are told of a tool's content and effect; `*` for all."
    )
    cost: dict[Called, Cost] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="What a call counts for in budgets of `cost`; `*` for all others."
    )
    devices: Reserved = None
    user_namespace: Literal["always", "when-possible"] = Field(
        default="when-possible", description="`always` refuses an engine that cannot give the box a user namespace."
    )
    accept_risk: tuple[Name, ...] = Field(
        default=(), strict=False, description="Ids of known risks that `doctor` names."
    )
