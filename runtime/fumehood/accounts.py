"""Whose the three processes and the boxes are: as root, or as an ordinary user.

Root has users of its own for worker and ledger and a range of ids that is reserved for fumehood alone. A user has
nobody else to be: the three processes share the user's uid, and boxes take their ids from the subordinate range that subuid(5)
gives the user. In both cases the ids are given as the broker will see them (`Settings`): for a user, those of the user namespace
that the broker makes for itself, in which 0 is the user and the subordinate ids follow from 1.

A user's state is always the user's own. Images are root's, which everybody may read, unless the user's folder has some.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fumehood.config import Config
from fumehood.faults import FumehoodError
from fumehood.reasons import Reason
from fumehood.state import PREFIX, StateFolder, state_folder
from fumehood.subids import subordinate_range

# Two boxes and what no box gets; with fewer there is nothing to run.
_LEAST_IDS = 3 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """`worker` and `ledger` are (uid, gid), `ids` (start, count) as the broker sees them, `subuids` and `subgids` as the host does."""

    name: str
    state: StateFolder
    worker: tuple[int, int]
    ledger: tuple[int, int]
    ids: tuple[int, int]
    subuids: tuple[int, int] = (0, 0)
    subgids: tuple[int, int] = (0, 0)
    image_folder: str | None = None


def of_root(env: Mapping[str, str], found: Config) -> Account:
    """Root's. Raises FumehoodError(UNENFORCEABLE) when setup has not been run."""
    worker, ledger = _system_user(PREFIX), _system_user(f"{PREFIX}-ledger")
    ids = subordinate_range(Path("/etc/subuid"), PREFIX)
    if ids is None or ids != subordinate_range(Path("/etc/subgid"), PREFIX):
        raise FumehoodError(
            Reason.UNENFORCEABLE, f"/etc/subuid and /etc/subgid reserve no equal range for `{PREFIX}`", remedy="Run ./scripts/setup."
        )
    return Account(
        name=pwd.getpwuid(0).pw_name,
        state=state_folder(env, 0, found.state),
        worker=(worker.pw_uid, worker.pw_gid),
        ledger=(ledger.pw_uid, ledger.pw_gid),
        ids=ids,
    )


def of_user(env: Mapping[str, str], found: Config, uid: int) -> Account:
    """An ordinary user's. Raises FumehoodError(UNENFORCEABLE) for one without subordinate ids."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    ranges = [subordinate_range(Path("/etc") / file, name, str(uid)) for file in ("subuid", "subgid")]
    subuids, subgids = (found or (0, 0) for found in ranges)
    count = min(subuids[1], subgids[1])
    if count < _LEAST_IDS:
        raise FumehoodError(
            Reason.UNENFORCEABLE,
            f"boxes of a user need {_LEAST_IDS} subordinate ids, and /etc/subuid and /etc/subgid give {name} {count}",
            remedy=f"As root: `usermod --add-subuids START-END --add-subgids START-END {name}`, 65536 unused ids.",
        )
    state = users_state(env, found, uid)
    mine = (uid, os.getgid())
    return Account(
        name=name, state=state, worker=mine, ledger=mine, ids=(1, count),
        subuids=(subuids[0], count), subgids=(subgids[0], count), image_folder=str(image_folder(env, found, uid)),
    )  # fmt: skip


def users_state(env: Mapping[str, str], found: Config, uid: int) -> StateFolder:
    """A user's state folder. The `state` of the system's configuration is root's, and nobody else's."""
    return state_folder(env, uid, None if _is_roots(found) else found.state)


def image_folder(env: Mapping[str, str], found: Config, uid: int) -> Path:
    """Where a caller reads images: root's store, unless a user's own folder has any."""
    if uid == 0:
        return state_folder(env, 0, found.state).images
    own = users_state(env, found, uid).images
    if (own / "names").is_dir():
        return own
    return state_folder({}, 0, found.state if _is_roots(found) else None).images


def _is_roots(found: Config) -> bool:
    return found.file is not None and Path(found.file).stat().st_uid == 0


def _system_user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise FumehoodError(
            Reason.UNENFORCEABLE, f"there is no system user `{name}` to run unprivileged", remedy="Run ./scripts/setup."
        ) from None
