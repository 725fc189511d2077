"""`scripts/conformance`: the protocol's own conformance suite, directly and through the gateway. See docs/conformance.md.

Exit status 0 when every scenario that passes directly passes through the gateway, 1 when one does not, 2 when something could
not be run at all.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

# The tests' own helpers (`lab`) are one folder up.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import NPM, OURS, NotServedError, Server, directly, through_gateway
from suite import REVISIONS, Found, Row, Suite, SuiteError, compare

SERVERS = {server.name: server for server in (OURS, NPM)}


def main() -> int:
    """Run what is asked for, print, and judge."""
    wanted = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives us
    suite = Suite(Path(os.environ["FUMEHOOD_PEERS_FOLDER"]))
    tables: dict[str, list[Row]] = {}
    try:
        for name in wanted.server or SERVERS:
            server = SERVERS[name]
            revisions = [each for each in wanted.revision or REVISIONS if each in server.eras]
            for revision in revisions:
                rows = tables[f"{name} {revision}"] = _both(suite, server, revision, wanted)
                if not wanted.json:
                    sys.stdout.write(table(f"{name} {revision}", rows) + "\n")
                    sys.stdout.flush()
    except (SuiteError, NotServedError) as error:
        sys.stderr.write(f"conformance: {error}\n")
        return 2
    if wanted.json:
        json.dump({title: [_plain(row) for row in rows] for title, rows in tables.items()}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    worse = [row for rows in tables.values() for row in rows if row.worse]
    return 1 if worse else 0


def _both(suite: Suite, server: Server, revision: str, wanted: argparse.Namespace) -> list[Row]:
    def run(url: str) -> Mapping[str, Found]:
        return suite.run(url, revision, wanted.scenario)

    required = [wanted.scenario] if wanted.scenario else suite.required(revision)
    with directly(server, suite.peers) as url:
        direct = {name: _for_what_it_is(server, name, found) for name, found in run(url).items()}
    if wanted.direct:
        return compare(required, direct, None)
    extra = "" if wanted.profile is None else wanted.profile.read_text()
    with through_gateway(server, wanted.engine, wanted.gateway_option or (), extra) as url:
        return compare(required, direct, run(url))


def _for_what_it_is(server: Server, scenario: str, found: Found) -> Found:
    return replace(found, verdict="skip") if scenario in server.vacuous and found.verdict == "pass" else found


def table(title: str, rows: Sequence[Row]) -> str:
    """One table as Markdown, the totals above it, and below it what went wrong through the gateway alone."""
    ways = [("directly", [row.direct for row in rows if row.required])]
    if all(row.gateway is not None for row in rows):
        ways.append(("through the gateway", [row.gateway for row in rows if row.required and row.gateway is not None]))
    totals = ", ".join(
        f"{sum(found.verdict == 'pass' for found in each)} of {len(each)} {way}" for way, each in ways
    )
    lines = [f"### {title}", "", f"Required scenarios passed: {totals}.", "", "| scenario | direct | gateway |", "|---|---|---|"]
    for row in rows:
        name = row.scenario if row.required else f"{row.scenario} (not required)"
        gateway = "not run" if row.gateway is None else _cell(row.gateway)
        lines.append(f"| {name} | {_cell(row.direct)} | {f'**{gateway}**' if row.worse else gateway} |")
    lines.append("")
    for row in rows:
        if row.worse and row.gateway is not None:
            lines += [f"* {row.scenario}: {words}" for words in row.gateway.complaints or ("was not run",)]
    return "\n".join(lines) + "\n"


def _cell(found: Found) -> str:
    return f"{found.verdict} {found.passed}/{found.passed + found.failed}" if found.verdict != "absent" else "absent"


def _plain(row: Row) -> dict[str, object]:
    return {**asdict(row), "worse": row.worse}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/conformance", description="Compare a server with itself behind the gateway.")
    parser.add_argument("--server", action="append", choices=list(SERVERS), help="only this server; may be repeated")
    parser.add_argument("--revision", action="append", choices=REVISIONS, help="only this revision; may be repeated")
    parser.add_argument("--scenario", help="only this scenario")
    parser.add_argument("--direct", action="store_true", help="no gateway: what the servers themselves pass")
    parser.add_argument("--engine", choices=("docker", "oci"), help="the gateway's engine")
    parser.add_argument("--gateway-option", action="append", metavar="WORD", help="one more word for `fumehood gateway`")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="YAML that is added to the servers' profiles")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
