"""Who owns image files on disk, and as whom strangers' bytes are handled: slot 0 of the id pool.

Uid N inside an image is uid `start + N` on disk. The last id of the slot is never mapped into an image and owns no
file: fetching runs as it, so a download tool that turns on us reaches neither the store's files nor the worker's
process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

USER = "fumehood"
MAPPED = 65_535


@dataclass(frozen=True, slots=True)
class Owners:
    """Slot 0 of the pool: `start` is an image's root, `fetcher` the id that downloads."""

    start: int

    @property
    def fetcher(self) -> int:
        """The slot's last id."""
        return self.start + MAPPED


def owners(folder: Path = Path("/etc")) -> Owners:
    """Slot 0, from what subuid(5) and subgid(5) reserve for `fumehood`; both must reserve the same."""
    starts = {_start(folder / name) for name in ("subuid", "subgid")}
    start = starts.pop()
    if starts or start is None:
        raise FumehoodError(
            Reason.UNENFORCEABLE,
            f"/etc/subuid and /etc/subgid do not reserve one range of at least 65536 ids for {USER}",
            remedy="Run scripts/install-host as root.",
        )
    return Owners(start)


def _start(file: Path) -> int | None:
    lines = file.read_text().splitlines() if file.exists() else []
    for fields in (line.split(":") for line in lines):
        if len(fields) == 3 and fields[0] == USER and fields[1].isdigit() and fields[2].isdigit():
            return int(fields[1]) if int(fields[1]) > MAPPED and int(fields[2]) > MAPPED else None
    return None
