"""The Protocols between the spine and what does the work. Fakes in tests implement exactly these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fumehood.halting import Halting
from fumehood.model import (
    Binding,
    FileChange,
    Frame,
    Image,
    Keeping,
    Outcome,
    PinOf,
    PinState,
    Sender,
    ToolCall,
    Usage,
)
from fumehood.permission import Approval, Need, Vote
from fumehood.places import Places
from fumehood.policies.known import Account, Booked, Conversation
from fumehood.policies.policy import Policies
from fumehood.reach import Secret, Supplies
from fumehood.reasons import Reason
from fumehood.residence import Residences, Surveyed
from fumehood.screening.known import KnownSecrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A box whose init waits. `facts` go to the record: versions, digests, id range, timings."""

    engine: str
    container: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """How the tool's first process ended; exactly one of `exit_code` and `signal` unless it never started."""

    exit_code: int | None = None
    signal: int | None = None
    killed: Reason | None = None
    failed: Reason | None = None
    detail: str = ""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of a workspace's changes. `pending`: kept for `fumehood diff|commit|discard`."""

    files: tuple[FileChange, ...] = ()
    files_total: int = 0
    pending: bool = False
    failed: Reason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """One place that a gate listens at inside a box's network: an IPv4 and an IPv6 address (None: all of them), and a port."""

    v4: str | None
    v6: str | None
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """A gate's sockets inside a box's network, made by the broker; the descriptors are the receiver's to close.

    `dns_udp`, `dns_tcp` and each of `listeners` (in the order asked for) are an IPv4 and an IPv6 socket, bound, listening and not
    blocking. `packets` is an AF_PACKET socket on `lo` that sees refused attempts only; None where the kernel gives none.
    """

    dns_udp: tuple[int, int]
    dns_tcp: tuple[int, int]
    listeners: tuple[tuple[int, int], ...]
    packets: int | None
    facts: Mapping[str, Any]


class Broker(Protocol):
    """The privileged process's verbs for one box each, named by task. Raises `Refused` or `BoxFailed`."""

    async def make(self, task: str, frame: Frame) -> Made:
        """Make a box whose init waits."""
        ...

    async def network(self, task: str, listen: Sequence[Listen]) -> Sockets:
        """Make every address of a box's network local, and sockets in it for its gate. Before `bind`, once a box."""
        ...

    async def bind(self, task: str, binding: Binding, supplies: Supplies) -> Mapping[str, Any]:
        """Attach the call's own things; returns facts for the record. `supplies.environment` is not the broker's to see."""
        ...

    async def start(
        self, task: str, argv: Sequence[str], env: Mapping[str, str], stdio: tuple[int, int, int], *, check_fence: bool
    ) -> Mapping[str, Any]:
        """Read back what the kernel applied, and with `check_fence` what the tool reaches; then start it. Returns the read-back."""
        ...

    async def wait(self, task: str) -> Exited:
        """Wait until the tool has ended and nothing of the box runs but its init."""
        ...

    async def kill(self, task: str, reason: Reason) -> None:
        """End every process of the box now; `wait` then returns with this reason."""
        ...

    async def freeze(self, task: str, seconds: float) -> Usage:
        """Stop every process of the box for at most `seconds`; what was used since the start or the last thaw."""
        ...

    async def thaw(self, task: str) -> None:
        """Let the box go on. `wall` stood still meanwhile."""
        ...

    async def survey(self, task: str) -> Surveyed:
        """What is in a box that stands still beside its tool's first process."""
        ...

    async def put(self, task: str, source: int, path: str) -> None:
        """Copy what `source` holds to a new file of the workspace, before the start."""
        ...

    async def get(self, task: str, path: str, target: int, most_bytes: int | None = None) -> None:
        """Copy a regular file of the workspace into `target`, after the end. BoxFailed(RESULT_TOO_LARGE) for more."""
        ...

    async def settle(self, task: str, action: str, protect: Sequence[str]) -> Settled:
        """`commit`, `hold` or `discard` the workspace's changes of a box whose tool has ended."""
        ...

    async def remove(self, task: str) -> Mapping[str, Any]:
        """Remove everything of the box, check that it is gone, and return the teardown facts. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Whose a call was, how it went, and what is kept of it: `fd` is the reader's to close, None when nothing is."""

    sender: Sender
    front_door: str
    is_open: bool
    result: str | None
    reason: str | None
    opened_at_s: float
    closed_at_s: float | None
    fd: int | None = None
    size_bytes: int = 0
    kept_at_s: float = 0.0
    until_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderKey:
    """A public key whose signatures are a sender's. `key` is a JWK's `x`; no `audiences` means any."""

    kid: str
    name: str
    key: str
    tenant: str
    groups: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    revoked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What the ledger knows of a call at the moment that its record is opened. `pin` is None for a call without one."""

    pin: PinState | None = None
    booked: Booked = field(default_factory=Booked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One tool as a server has it now. `text` is what its pin is the SHA-256 of; `trusted`: it may be accepted at first sight."""

    tool: str
    text: str
    trusted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How it stands with an approval: `state` is open, approved, denied, withdrawn, expired or spent.

    `task` is the call that asked first. `is_new`: this very request made it; an equal one had not.
    """

    id: str
    task: str
    binding: str
    state: str
    until_s: float
    votes: tuple[Vote, ...] = ()
    is_new: bool = False


class Requester(Protocol):
    """The client of a call that waits for an approval, which may know and may not decide (rule 23)."""

    @property
    def withdraws(self) -> bool:
        """Whether a call that was cancelled was cancelled by its client, which does not want it any more."""
        ...

    async def pending(self, waiting: Mapping[str, Any]) -> bool | None:
        """Tell of it, as `prompt.lines` has it, for as long as that takes.

        True: a person at the client confirms the request, which counts where a rule says so; False: takes it back; None: neither.
        """
        ...


class Ledger(Protocol):
    """The ledger process. Raises `LedgerGone` when it cannot make durable what it was given."""

    async def open(self, call: ToolCall, account: Account | None = None) -> Opened:
        """Write the call's record durably, and book it if it has an account. Returns only when it is on disk."""
        ...

    async def conversation(self, task: str, account: Account) -> Conversation | None:
        """What a call's conversation and workspace hold by now, beside what it was booked with itself; None when it is not booked."""
        ...

    async def pins_seen(
        self, of: PinOf, profile: str, declared: str, definitions: Sequence[Definition]
    ) -> Mapping[str, PinState]:
        """Tell what a server's tools are now, durably; by tool, whether they may be called. Raises `Refused` for too many."""
        ...

    async def pins_of(self, of: PinOf, profile: str) -> Mapping[str, str]:
        """The tools of a server that may be called now, with their pins."""
        ...

    async def claim(self, task: str, policy: str) -> str | None:
        """Take the idempotency key of a call of this runtime's durably, or name the task that has it: a request equal to this one.

        `policy` is what the call was admitted by. Raises `Refused`: the key is another request's, or there are too many.
        """
        ...

    async def approval_ask(self, task: str, binding: str, need: Need, question: Mapping[str, Any], until_s: float) -> Waiting:
        """Have a call wait for an approval of this binding: an equal request's if there is one, else a new one (durably).

        Raises `Refused`: as many wait as may, or everything is stopped.
        """
        ...

    async def approval_state(self, approval: str) -> Waiting:
        """How it stands with it."""
        ...

    async def approval_spend(self, approval: str, binding: str, task: str) -> Approval | None:
        """Use it up for this call, durably; None when it is not to be had any more."""
        ...

    async def approval_confirm(self, approval: str, task: str) -> None:
        """Take the requester's own confirmation. Raises `Refused` where that is not enough."""
        ...

    async def approval_withdraw(self, approval: str, task: str) -> None:
        """Take the request back. Raises `Refused` when it is decided."""
        ...

    async def approval_answer(self, text: str) -> Waiting:
        """Take an approver's signed answer, which the ledger itself verifies. Raises `Refused`."""
        ...

    async def approval_told(self, approval: str, task: str, told: str) -> None:
        """Note what became of telling approvers."""
        ...

    async def event(self, task: str, state: str, facts: Mapping[str, Any]) -> None:
        """Append one step of the call's timeline (state of `lifecycle.State`, JSON facts)."""
        ...

    async def close(self, outcome: Outcome) -> None:
        """Close the record with its outcome."""
        ...

    async def keep(self, task: str, kind: Keeping, source: int, offset: int, size: int) -> float:
        """Keep bytes of a sealed memory file beside a record of this runtime's; until when they are kept (epoch).

        Raises `Refused` when they cannot be kept. Returns only when they are on disk.
        """
        ...

    async def lease_opened(
        self, lease: str, task: str, credential: str, provider: str, handle: Mapping[str, Any], until_s: float | None
    ) -> None:
        """Write durably that a credential is about to be issued, and how to revoke it. Returns only when it is on disk."""
        ...

    async def lease_issued(
        self, lease: str, expires_at_s: float | None, sealed: Mapping[str, str], facts: Mapping[str, Any]
    ) -> None:
        """Write durably what else revoking it takes."""
        ...

    async def lease_closed(self, lease: str, revoked: Revoked | None, error: str | None) -> None:
        """Note a revocation, or a try that failed; with `revoked` the lease is closed."""
        ...

    async def leases_claim(
        self, *, lease: str | None = None, task: str | None = None, after: str | None = None, orphaned: bool
    ) -> Sequence[OpenLease]:
        """Take some leases to revoke (after `after`), which nobody else then does for two minutes; `orphaned`: nobody else will."""
        ...

    async def egress(self, task: str, entries: Sequence[EgressEntry], counters: Mapping[str, int]) -> None:
        """Append to a task's egress log; `counters` replace those before."""
        ...

    async def spend(self, key: str, nonce: str, until_s: float) -> None:
        """Take the nonce of a request that expires then (epoch), once for all runtimes. Returns only when that is on disk.

        Raises `Refused`: it was taken before, it or its key's share cannot be remembered, the request is out of date, or the key is
        of a sender's and revoked.
        """
        ...

    async def sender(self, kid: str) -> SenderKey | None:
        """The key of this thumbprint, revoked or not; None when nobody's."""
        ...

    async def kept(self, task: str, kind: Keeping) -> Kept | None:
        """What is kept of any task; None when there is no such task. Whether it may be read is the caller's to judge."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """What a call asks a provider for. `scope` is the profile's template with the call's arguments in it; `seconds` at most."""

    lease: str
    task: str
    credential: str
    scope: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A credential that lives. `sealed` is what revoking it takes and nobody may read; `facts` go to the record."""

    secret: Secret
    expires_at_s: float | None
    sealed: Mapping[str, str] = field(default_factory=dict, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """What a provider was asked and answered. `gone` is False when the credential lives on until it expires."""

    gone: bool
    asked: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLease:
    """A lease that is to be revoked, claimed by who has this. `problem` says what is missing of `sealed`, if anything is.

    One that is not `issued` may be just being issued: its worker died before it heard the answer.
    """

    lease: str
    task: str
    credential: str
    provider: str
    handle: Mapping[str, Any]
    sealed: Mapping[str, str] = field(repr=False)
    opened_at_s: float
    issued: bool
    until_s: float | None
    tries: int
    problem: str | None = None


class CredentialProvider(Protocol):
    """Makes credentials for one call and ends them. Raises FumehoodError, whose text holds no secret.

    `maximum` is what the operator allows a scope to be at most, key by key (`credentials.scope`); `least_s` the shortest life that the
    backend gives a credential, which bounds how long one lives whose issue was never answered.
    """

    kind: str
    revocable: bool
    least_s: float
    maximum: Mapping[str, Any]

    async def handle(self, request: LeaseRequest) -> Mapping[str, Any]:
        """What will revoke this lease even if the answer to its issue is lost; made durable before `issue` (rule 19).

        At most 4 KiB of JSON and no secret. Where only the backend can name what is to come, it may be asked to; it must not
        make anything yet that outlives a few minutes unrevoked.
        """
        ...

    async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
        """Make the credential."""
        ...

    async def revoke(self, handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:
        """End it. Idempotent: what is gone already is gone."""
        ...


class Leases(Protocol):
    """The credentials of one call, as its gate has them."""

    @property
    def supplies(self) -> Supplies:
        """What of them goes into the box: nothing, unless the profile delivers by `file` or `env`."""
        ...

    def secret(self, credential: str) -> Secret | None:
        """The live secret; None while the call is parked, and after its end."""
        ...

    async def suspend(self) -> None:
        """Revoke all of them: the call is parked."""
        ...

    async def renew(self) -> None:
        """Issue them anew: the call goes on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressEntry:
    """One line of a task's egress log. `kind`: dns, connect, request, refused, close, alarm. `facts` are short JSON values."""

    at_s: float
    kind: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outward:
    """What the operator decides for every gate and lease of this runtime.

    `resolvers` are `address:port` of DNS servers, empty for the system's; `authorities` is PEM to trust upstream beside the
    system's roots; `proxy` an `http://host:port` that upstream connections go through. `shared` is what all gates of a runtime have
    in common (answers of resolvers, the memory that is used): theirs alone.
    """

    resolvers: tuple[str, ...] = ()
    authorities: str | None = None
    proxy: str | None = None
    memory_bytes: int = 256 * 2**20
    providers: Mapping[str, CredentialProvider] = field(default_factory=dict)
    shared: dict[str, object] = field(default_factory=dict, repr=False, compare=False)


class Reply(Protocol):
    """What a remote server answers to one request: a head, and a body that comes in pieces.

    `headers` have names in lower case, each once; of what decides something a second one was refused.
    """

    status: int
    headers: Mapping[str, str]

    async def read(self) -> bytes:
        """The next piece of the body, empty at its end. Raises ExchangeFailed."""
        ...

    def close(self) -> None:
        """Be done with it: a body that was not read to its end is cut off, and its connection ended. Idempotent."""
        ...


class Origin(Protocol):
    """The one URL of a remote server, as its gate lets a call ask it."""

    async def ask(self, method: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Send a request and wait for the head of its answer; who we are to the server, the gate writes. Raises ExchangeFailed."""
        ...


@dataclass(frozen=True, slots=True)
class Recall:
    """How the value of a call's outcome is written down, as JSON has it, and read again for a request that repeats it."""

    written: Callable[[Any], Any]
    read: Callable[[Any], Any]


class Images(Protocol):
    """The image store, read side."""

    def resolve(self, name: str) -> Image | None:
        """The image of this name or digest, or None."""
        ...


class Clock(Protocol):
    """Time, so that tests can hold it."""

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic_s(self) -> float:
        """Seconds of a clock that never steps."""
        ...


Tell = Callable[[Mapping[str, Any], str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Approvals:
    """How this runtime asks people: who may approve, how long a request is held open, and how long it can be approved.

    `keys` are those approvers who sign (a JWK's `x` by name), `callback` the HTTP path that takes what they signed for `audience`.
    `tell` has approvers told of a new one (its fields, the task that asked), and does not wait for it.
    """

    approvers: frozenset[str] = frozenset()
    wait_s: float = 50.0
    expire_s: float = 3600.0
    keys: Mapping[str, str] = field(default_factory=dict)
    audience: str = "fumehood"
    callback: str | None = None
    tell: Tell = lambda _fields, _task: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Everything a call may touch. `owner_uid` owns the state folder, which policies can ask for."""

    broker: Broker
    ledger: Ledger
    images: Images
    clock: Clock
    owner_uid: int
    residences: Residences = field(default_factory=Residences)
    halting: Halting = field(default_factory=Halting)
    policies: Policies = field(default_factory=Policies)
    outward: Outward = field(default_factory=Outward)
    approvals: Approvals = field(default_factory=Approvals)
    known: KnownSecrets = field(default_factory=KnownSecrets)
    places: Places = field(default_factory=Places)
