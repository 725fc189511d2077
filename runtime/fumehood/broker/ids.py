"""Id ranges: 65,536 host ids for each live box, from the range that /etc/subuid reserves for `fumehood`; fewer without root.

Slot 0 owns the image store's files; a box takes a slot from 1 on. A slot is taken by creating `ids/<slot>` exclusively with the
runtime's id in it, and given back by removing that file, which only happens after a verified teardown or by the sweeper:
two live boxes over one range could signal each other (rule 14), so a crash must not free a slot by itself. The range is the host's and
state folders may be several, so each slot is claimed for the whole host as well, in a folder that a reboot empties. A claim is a
hard link to its runtime's mark (`living.py`): it says whose it is from the moment that it is there, and whether that one lives.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fumehood.broker.living import MARKS
from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

RANGE = 65_536
BOX_UID = 1000
CLAIMS = Path("/run/fumehood/ids")


@dataclass(frozen=True, slots=True)
class IdPool:
    """The reserved range and the folder that says which slots are taken."""

    folder: Path
    start: int
    count: int
    claims: Path = CLAIMS
    marks: Path = MARKS
    size: int = RANGE

    @property
    def image_base(self) -> int:
        """The first id of slot 0."""
        return self.start

    def base(self, slot: int) -> int:
        """The first host id of a slot."""
        return self.start + slot * self.size

    def range_of(self, slot: int) -> range:
        """The host ids of a slot."""
        return range(self.base(slot), self.base(slot + 1))

    def take(self, runtime_id: str) -> int:
        """A free slot, now ours. Raises FumehoodError(BUSY) when all are taken."""
        slots = self.count // self.size
        # Spreads runtimes over the pool; and one runtime takes the same few slots again, whose idmaps are made already.
        first = 1 + zlib.crc32(runtime_id.encode()) % (slots - 1)
        for step in range(slots - 1):
            slot = 1 + (first - 1 + step) % (slots - 1)
            try:
                os.link(self.marks / runtime_id, self.claims / str(slot))
            except FileExistsError:
                continue
            try:
                with (self.folder / str(slot)).open("x") as file:
                    file.write(runtime_id)
            except FileExistsError:  # a dead runtime's from before the reboot, not yet swept
                self.unclaim(slot, runtime_id)
                continue
            return slot
        raise FumehoodError(Reason.BUSY, f"all {slots - 1} id ranges are in use")

    def give_back(self, slot: int, runtime_id: str) -> bool:
        """Free a runtime's slot after its box is verifiably gone; True when it is not noted any more."""
        (self.folder / str(slot)).unlink(missing_ok=True)
        self.unclaim(slot, runtime_id)
        return not (self.folder / str(slot)).exists()

    def unclaim(self, slot: int, runtime_id: str) -> None:
        """Take back what a runtime claimed for the host. Since a reboot the claim may be another's, who lives."""
        claim = self.claims / str(slot)
        with suppress(FileNotFoundError):
            if claim.samefile(self.marks / runtime_id):
                claim.unlink()

    def of_runtime(self, runtime_id: str) -> list[int]:
        """The slots a runtime holds: noted in the state folder, or only claimed when it died."""
        noted = {int(file.name) for file in self.folder.iterdir() if file.name.isdigit() and _owner(file) == runtime_id}
        return sorted(noted.union(self.claimed(runtime_id)))

    def claimed(self, runtime_id: str) -> Iterator[int]:
        """The slots that the host knows to be this runtime's."""
        try:
            mark = (self.marks / runtime_id).stat()
        except FileNotFoundError:
            return
        if mark.st_nlink > 1:
            with os.scandir(self.claims) as entries:
                yield from (int(entry.name) for entry in entries if entry.name.isdigit() and entry.inode() == mark.st_ino)


def _owner(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:  # given back meanwhile
        return ""
