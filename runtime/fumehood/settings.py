"""What every process of one runtime is told when it is forked: frozen, standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from fumehood.state import StateFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`workspace_roots` None means any directory of the caller's: the operator's own command line."""

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
