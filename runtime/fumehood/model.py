"""The frozen values that stages exchange.

Invariants: nothing here does I/O, nothing here imports anything of ours but other values (`reach`, `permission`), and every size is in
bytes and every time in seconds, as its name says. A stage takes the type that only the stage before can make
(`ToolCall -> Verified -> Screened -> Verdict -> Grant -> Plan -> Outcome`), so a skipped stage does not type-check.
Broker and ledger import this module in their privileged processes: standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from fumehood.permission import Approval, Need
from fumehood.reach import CredentialUse, Network
from fumehood.reasons import Reason

REMOTE = "remote"
"""The engine of a call to a remote server, which has none."""


class WorkspaceMode(StrEnum):
    """How a box sees the caller's directory, mounted at /workspace."""

    NONE = "none"
    RO = "ro"
    RW = "rw"
    SCRATCH = "scratch"
    DIRECT = "direct"


class CommitMode(StrEnum):
    """What happens to the changes of an `rw` workspace after a call that succeeded."""

    AUTO = "auto"
    ASK = "ask"
    NEVER = "never"


class Scope(StrEnum):
    """Whether a box serves one call or a session of calls."""

    CALL = "call"
    SESSION = "session"


class Kind(StrEnum):
    """What a call asks of a server, as MCP names it.

    `COMMAND` is an operator's own command, or a conversation of ours; `SESSION` keeps a server for other calls, `STANDBY` has one
    started for a single call that is still to come.
    """

    COMMAND = "command"
    SESSION = "session"
    STANDBY = "standby"
    TOOL = "tool"
    PROMPT = "prompt"
    RESOURCE = "resource"
    COMPLETION = "completion"


class Oversize(StrEnum):
    """What becomes of a result over `limits.result`: an error, or a resource link to it."""

    REFUSE = "refuse"
    SPILL = "spill"


class Keeping(StrEnum):
    """What can be kept of a call beside its record.

    What its server said, as it said it; what its client was told; how it ended, for whoever asks again by the same key; or its
    arguments, for as long as an approver has to see them.
    """

    RESULT = "result"
    ANSWER = "answer"
    ONCE = "once"
    ARGUMENTS = "arguments"


class UserNamespace(StrEnum):
    """Whether a box without a user namespace of its own is acceptable (Docker without userns-remap has none)."""

    ALWAYS = "always"
    WHEN_POSSIBLE = "when-possible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one box may use. `output_bytes` counts per stream; `disk_bytes` is the scratch or overlay upper layer."""

    cpu: float = 1.0
    memory_bytes: int = 512 * 2**20
    pids: int = 128
    wall_s: float = 60.0
    idle_s: float | None = None
    output_bytes: int = 2**20
    result_bytes: int = 8 * 2**20
    disk_bytes: int = 256 * 2**20
    disk_unlimited: bool = False
    tmp_bytes: int = 64 * 2**20
    open_files: int = 1024
    boxes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOnlyMount:
    """A host directory seen read-only (through an overlay, rule 12) at /mnt/<name> in the box."""

    source: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """The profile's filesystem part. `protect` holds workspace-relative glob patterns (gitignore-like, `/`-separated)."""

    workspace: WorkspaceMode = WorkspaceMode.NONE
    commit: CommitMode = CommitMode.AUTO
    protect: tuple[str, ...] = ()
    mounts: tuple[ReadOnlyMount, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLife:
    """How long a session's box is kept: without a call, and in all.

    `approvals`: whether a call that a person must agree to may run in it, where nobody sees what earlier calls left (rule 10).
    """

    idle_s: float = 300.0
    lifetime_s: float = 3600.0
    approvals: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """How many servers stand by, started and frozen, each for one call.

    None are kept after `idle_s` without a call, and none that has waited for `age_s`.
    """

    started: int = 0
    idle_s: float = 600.0
    age_s: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a server may ask its client in mid-call (rule 8): which questions, how many a call, and how long its box waits.

    `roots`: whether the client is asked before a server is shown /workspace; without it nobody is.
    """

    elicitation: bool = False
    sampling: bool = False
    roots: bool = False
    most: int = 10
    wait_s: float = 300.0

    @property
    def anything(self) -> bool:
        """Whether there is a question that reaches a client."""
        return self.elicitation or self.sampling or self.roots


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentBounds:
    """What the arguments of one call may be at most, whatever a tool's schema allows.

    `items` are those of one array or the members of one object, `depth` counts levels, `values` is all there are.
    `open` names places whose free-form objects may hold any member: `*`, `TOOL`, or `TOOL/name/name` with `~1` for a slash.
    """

    string_bytes: int = 2**20
    items: int = 10_000
    depth: int = 32
    values: int = 100_000
    open: tuple[str, ...] = ()


class OnSecret(StrEnum):
    """What becomes of a text with a secret in it. For an issued credential `ALLOW` is not heard: see `screening.judging`."""

    ALLOW = "allow"
    REDACT = "redact"
    ASK = "ask"
    BLOCK = "block"


class OnHidden(StrEnum):
    """What becomes of a result with characters that nobody sees."""

    ALLOW = "allow"
    MARK = "mark"
    BLOCK = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class Excuse:
    """A format that is no secret at some place, and why.

    `where` is `*`, a tool's name, or a place in its arguments (TOOL/name/name).
    """

    rule: str
    where: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What becomes of secrets in arguments, in requests that get a credential, in what comes out; and of what is hidden."""

    arguments: OnSecret = OnSecret.BLOCK
    bodies: OnSecret = OnSecret.BLOCK
    outputs: OnSecret = OnSecret.REDACT
    hidden: OnHidden = OnHidden.MARK
    allow: tuple[Excuse, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """That something was found: by which rule, where (a JSON pointer, or a stream's name), how often. Never what."""

    rule: str
    place: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentTest:
    """One comparison on a system call's argument, as libseccomp names them (`eq ne lt le gt ge masked_eq`)."""

    index: int
    op: str
    value: int
    mask: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SeccompRule:
    """`action` is `allow`, `errno` (with `errno`) or `kill`; a rule holds when all `tests` hold."""

    names: tuple[str, ...]
    action: str
    errno: int = 0
    tests: tuple[ArgumentTest, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeccompPolicy:
    """A system call policy: names no rule speaks of fail with `default_errno`. Native ABI only.

    `default_errno` None allows them: for filters of our own processes, never for a box (the broker refuses it).
    """

    name: str
    default_errno: int | None
    rules: tuple[SeccompRule, ...]

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the canonical JSON form, without the name: two names for one policy share a filter."""
        return _digest_of_policy(self)

    @property
    def text(self) -> str:
        """`fields` as JSON, made once: a call is told of some hundred rules, and they are its profile's."""
        return _text_of_policy(self)

    def fields(self) -> dict[str, Any]:
        """What `asdict` gives, in a tenth of its 4 ms: that copies every string of some hundred rules deeply."""
        return {
            "name": self.name,
            "default_errno": self.default_errno,
            "rules": [
                {
                    "names": rule.names, "action": rule.action, "errno": rule.errno,
                    "tests": [{"index": test.index, "op": test.op, "value": test.value, "mask": test.mask} for test in rule.tests],
                }
                for rule in self.rules
            ],
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What an operator allows a tool, every default filled in. `tools` etc. hold names; `None` means all of them.

    `upstream` is the URL of a remote server, which is called through the gate alone, without a container: then `image` is empty,
    `network` has the one rule that its host is reached by, and `credentials` at most the one that the gate writes into requests.
    `labels` are what policies are told of tools (`*` for all): `untrusted`, `private`, `external`; `cost` what budgets count for them.
    """

    name: str
    digest: str
    image: str
    command: tuple[str, ...] = ()
    scope: Scope = Scope.CALL
    tools: frozenset[str] | None = frozenset()
    resources: frozenset[str] | None = frozenset()
    prompts: frozenset[str] | None = frozenset()
    completion: bool = False
    arguments: ArgumentBounds = field(default_factory=ArgumentBounds)
    secrets: Secrets = field(default_factory=Secrets)
    ask: Ask = field(default_factory=Ask)
    session: SessionLife = field(default_factory=SessionLife)
    pool: Pool = field(default_factory=Pool)
    results: Oversize = Oversize.REFUSE
    engine: str | None = None
    runtime: str | None = None
    limits: Limits = field(default_factory=Limits)
    filesystem: Filesystem = field(default_factory=Filesystem)
    seccomp: SeccompPolicy
    environment: tuple[tuple[str, str], ...] = ()
    user_namespace: UserNamespace = UserNamespace.WHEN_POSSIBLE
    accept_risk: tuple[str, ...] = ()
    network: Network = field(default_factory=Network)
    credentials: tuple[CredentialUse, ...] = ()
    upstream: str | None = None
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    cost: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image in the store. `digest` is `sha256:<hex>` of its normalised root tar; `docker_id` the engine's id or None.

    `java_store` is where its Java keeps the authorities that it trusts, if it has one.
    """

    name: str
    digest: str
    docker_id: str | None
    java_store: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Who asks. `uid` is the kernel's word (the process's own, or SO_PEERCRED), never the caller's.

    `groups` are what the operator, or an authority that the operator names, says of the sender.
    """

    uid: int
    name: str
    tenant: str = "local"
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a front door verified of a request that shows its own origin: a signature over this very request, by a known key.

    `method` names the kind of proof, `key` is the RFC 7638 thumbprint of its key, `nonce` what the ledger takes only once, and
    `until_s` (epoch) when the request itself expires, after which its nonce need not be remembered.
    """

    method: str
    key: str
    nonce: str
    until_s: float


class PinState(StrEnum):
    """What the ledger says of a tool's definition: only an accepted one may be called."""

    ACCEPTED = "accepted"
    NEW = "new"
    CHANGED = "changed"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class PinOf:
    """Whose pin a call has, beside its profile and tool: the server as the operator named it, and which set of client capabilities."""

    server: str
    capabilities: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A request, before anything about it is believed.

    `task` is the id made by `new_task_id`; `workspace_fd` a directory opened by the caller's own uid (rule 7).
    `tool` is the name of what is called: a tool's or a prompt's name, a resource's URI; None for an ad-hoc command of
    the operator. `session` is the task of the session whose box it runs in, if any, and `standby` that of a server which was started
    for it. `request_digest` is that of the request as it arrived, without its envelope, and without its `_meta` if it has a key and no
    signature; `pin` that of the definition which the tool was called by, and `pin_of` whose that is; `image_digest` is the image that
    the definition was read from, the only one it speaks for; `idempotency_key` the client's own name for the request, which it
    repeats when it does not know whether the first one arrived. `server` is the server as the operator named it, where there is one.
    """

    task: str
    tool: str | None
    arguments: Mapping[str, Any]
    sender: Sender
    profile: Profile
    workspace_fd: int | None = None
    workspace_path: str | None = None
    front_door: str = "run"
    kind: Kind = Kind.COMMAND
    session: str | None = None
    standby: str | None = None
    request_digest: str | None = None
    pin: str | None = None
    pin_of: PinOf | None = None
    image_digest: str | None = None
    proof: Proof | None = None
    idempotency_key: str | None = None
    server: str | None = None

    @property
    def host(self) -> str | None:
        """The task whose box it runs in, if it has none of its own."""
        return self.session or self.standby

    @property
    def is_hosting(self) -> bool:
        """Whether it only starts a server, for calls of their own records."""
        return self.kind in (Kind.SESSION, Kind.STANDBY)

    @property
    def named(self) -> str | None:
        """What is called, for records: a tool by its name, anything else with its kind before it."""
        plain = self.tool is None or self.kind is Kind.TOOL
        return self.tool if plain else f"{self.kind.value}:{self.tool}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deny:
    """A refusal as a value: the code, the rule that caused it, what was asked, and what to do next."""

    reason: Reason
    rule: str
    detail: str = ""
    remedy: str | None = None
    retry_after_s: int | None = None

    def line(self) -> str:
        """One line for a person: `code: detail. remedy`."""
        said = self.detail or self.reason.meaning
        return f"{self.reason.value}: {said} [{self.rule}]. {self.remedy or self.reason.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A call that is well-formed and whose image is known; None for a remote server. Made only by `admission.verify`."""

    call: ToolCall
    image: Image | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened(Verified):
    """A verified call that was searched for secrets: what was found may stay, or somebody is asked.

    Made only by `admission.screen`.
    """

    findings: tuple[Finding, ...] = ()
    asks: bool = False


class Decision(StrEnum):
    """ALLOW < ASK < DENY; the strictest wins and emptiness denies."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What policy says of a verified call. Made only by `admission.policy`.

    `why` says in sentences why somebody is asked, and `need` who must agree; both are for ASK. `policy` is the digest of what decided.
    """

    verified: Verified
    decision: Decision
    rule: str
    policy: str = ""
    why: tuple[str, ...] = ()
    need: Need = field(default_factory=Need)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Permission to run exactly this call. Made only by `admission.approval`.

    `approval` is what was agreed, if anybody was asked: spent, so no other call has it.
    """

    verdict: Verdict
    approval: Approval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """A grant for what did not run yet, as far as its sender's key tells. Made only by `admission.once`."""

    grant: Grant


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """A grant for what ran before: how that ended is the answer. Made only by `admission.once`."""

    earlier: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Everything of a box that the profile and the image alone decide: no argv, workspace, secret or route."""

    image: str
    docker_image: str | None
    engine: str | None
    runtime: str | None
    cpu: float
    memory_bytes: int
    pids: int
    open_files: int
    tmp_bytes: int
    seccomp: SeccompPolicy
    user_namespace: UserNamespace
    accept_risk: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The pool key: `sha256:<hex>` over every field, the policy by its own digest."""
        return _digest_of_frame(self)

    def fields(self) -> dict[str, Any]:
        """The frame as JSON has it, the policy as its text."""
        return {**{each.name: getattr(self, each.name) for each in fields(self)}, "seccomp": self.seccomp.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a box holds of one call, added after it was made. `workspace_fd` is a descriptor of the worker's."""

    workspace: WorkspaceMode
    workspace_fd: int | None
    workspace_path: str | None
    disk_bytes: int
    disk_unlimited: bool
    mounts: tuple[ReadOnlyMount, ...]
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A grant turned into what the broker will be asked. Made only by `sandbox.plan`.

    Without a `frame` the broker is asked nothing: the server is remote, and the call's box is its gate alone.
    """

    grant: Grant
    frame: Frame | None
    binding: Binding

    @property
    def call(self) -> ToolCall:
        """The call this plan carries."""
        return self.grant.verdict.verified.call

    @property
    def limits(self) -> Limits:
        """The profile's limits."""
        return self.call.profile.limits


class Result(StrEnum):
    """How a call ended. Refused: nothing ran. Failed: it ran and went wrong. Killed: we ended it.

    Lost: nobody can say. Repeated: nothing ran, because an earlier call had done it.
    """

    OK = "ok"
    FAILED = "failed"
    KILLED = "killed"
    REFUSED = "refused"
    LOST = "lost"
    REPEATED = "repeated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the box's cgroup counted, read after its last process was gone. None means the kernel does not say."""

    cpu_user_s: float | None = None
    cpu_system_s: float | None = None
    memory_peak_bytes: int | None = None
    pids_peak: int | None = None
    oom_kills: int | None = None
    pids_limit_hits: int | None = None
    cpu_throttled_s: float | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One change of an `rw` workspace, or one file a scratch workspace was left with."""

    path: str
    kind: str  # added | modified | deleted | directory | symlink
    size_bytes: int = 0
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one call ended, as callers and records see it. `value` is what an Exchange or a Function returned.

    `repeats` is how the earlier call ended whose answer this one's is; `found` what was removed from what came out, or marked in it.
    """

    task: str
    result: Result
    reason: Reason | None = None
    detail: str = ""
    rule: str | None = None
    remedy: str | None = None
    retry_after_s: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    stdout_total_bytes: int = 0
    stderr_total_bytes: int = 0
    value: Any = None
    engine: str | None = None
    container: str | None = None
    usage: Usage = field(default_factory=Usage)
    files: tuple[FileChange, ...] = ()
    files_total: int = 0
    pending: bool = False
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    repeats: Outcome | None = None
    found: tuple[Finding, ...] = ()


@functools.lru_cache(maxsize=64)
def _digest_of_policy(policy: SeccompPolicy) -> str:
    fields = policy.fields()
    return digest_of({name: fields[name] for name in ("default_errno", "rules")})


@functools.lru_cache(maxsize=64)
def _text_of_policy(policy: SeccompPolicy) -> str:
    return json.dumps(policy.fields(), separators=(",", ":"))


@functools.lru_cache(maxsize=64)
def _digest_of_frame(frame: Frame) -> str:
    return digest_of({**frame.fields(), "seccomp": frame.seccomp.digest})


def digest_of(value: object) -> str:
    """`sha256:<hex>` of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


def task_id(time_ms: int, randomness: bytes) -> str:
    """A lower-case ULID: 26 characters that sort by time. `randomness` is 10 bytes. Source: the ULID specification."""
    number = (time_ms & (2**48 - 1)) << 80 | int.from_bytes(randomness[:10], "big")
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -5, -5))
