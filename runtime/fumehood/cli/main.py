"""The `fumehood` command: what happens before and after the commands themselves.

Commands that make boxes fork their broker and ledger before anything else is imported: the three processes then start side by
side, and the privileged one never holds the parsers of the command line.
"""

from __future__ import annotations

import logging
import os
import sys

REFUSED = 125
_MAKE_BOXES = frozenset({"run", "gateway"})
_ONLY_READ = frozenset({"check", "token"})  # commands below `gateway`


def main() -> None:
    """Run the command line; every refusal is one line and exit status 125."""
    from fumehood import launch
    from fumehood.faults import FumehoodError

    if _MAKE_BOXES.intersection(sys.argv[1:2]) and not _ONLY_READ.intersection(sys.argv[2:3]) and "--help" not in sys.argv:
        launch.assemble_ahead()
    from fumehood.cli.app import tree

    logging.basicConfig(stream=sys.stderr, format="fumehood: %(message)s", level=logging.WARNING)
    status: object = 0
    try:
        tree(next(iter(sys.argv[1:]), None))()
    except FumehoodError as error:
        sys.stderr.write(f"fumehood: {error}\n")
        status = REFUSED
    except SystemExit as ended:
        status = ended.code or 0
    if not isinstance(status, int):
        sys.exit(str(status))
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking the interpreter apart costs 100 ms and frees only what the kernel frees anyway.
    os._exit(status)
