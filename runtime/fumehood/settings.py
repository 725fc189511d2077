"""What every process of one runtime is told when it is forked: frozen, standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fumehood.outward_config import OutwardConfig
from fumehood.policies.config import PolicyConfig
from fumehood.state import StateFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`workspace_roots` None means any directory of the caller's: the operator's own command line.

    `witnesses` are (kind, where, required), the kind `file` or `http`.
    `review`: no tool's definition is accepted at first sight, but for the servers of `review_otherwise`, and the other way round.
    `decides`: the ledger takes decisions about pins and approvals, for one command that serves nobody. `approvers` are (name, `uid` or
    `key`, value), `own_approvals` whether who asked as the caller may approve it at a terminal. These are for the ledger to go by.

    `outward` is the worker's alone: the others are not told where the operator's secrets are. So is
    `policy` (None: this runtime carries no calls), for they decide nothing.

    `takes_senders`: whether this runtime's ledger may be told who sends. True for an operator's own command about that, and never
    where a worker reads strangers' bytes.

    Ids are as the broker sees them: the host's for root. Without root (`rootless`) they are those of the broker's own user namespace,
    in which 0 is the caller and 1 and on are the (start, count) of `subuids` and `subgids` on the host.
    """

    state: StateFolder
    runtime_id: str
    boot_id: str
    caller_uid: int
    caller_name: str
    worker_uid: int
    worker_gid: int
    ledger_uid: int
    ledger_gid: int
    ids_start: int
    ids_count: int
    workspace_roots: tuple[str, ...] | None
    mount_roots: tuple[str, ...]
    engine: str | None
    boxes: int
    docker_host: str
    accept_risk: tuple[str, ...] = ()
    config_file: str | None = None
    profile_folders: tuple[str, ...] = ()
    runtimes: tuple[tuple[str, str], ...] = ()
    rootless: bool = False
    subuids: tuple[int, int] = (0, 0)
    subgids: tuple[int, int] = (0, 0)
    image_folder: str | None = None
    results_kept_s: float = 24 * 3600.0
    witnesses: tuple[tuple[str, str, bool], ...] = ()
    review: bool = False
    review_otherwise: tuple[str, ...] = ()
    decides: bool = False
    approvers: tuple[tuple[str, str, str], ...] = ()
    approval_audience: str = "fumehood"
    approval_callback: str | None = None
    own_approvals: bool = True
    approval_wait_s: float = 50.0
    approval_expire_s: float = 3600.0
    outward: OutwardConfig = field(default_factory=OutwardConfig)
    policy: PolicyConfig | None = None
    takes_senders: bool = False

    def reviews(self, server: str) -> bool:
        """Whether only what an operator has accepted counts for this server of the gateway's."""
        return self.review != (server in self.review_otherwise)

    @property
    def images(self) -> Path:
        """The image store: the state folder's own, or the one that a user reads."""
        return self.state.images if self.image_folder is None else Path(self.image_folder)
