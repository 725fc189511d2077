"""An MCP server of ours for tests of gates and leases: queries, requests, and connections that it keeps. For the image `net-clients`.

The tools are beside those of `stateful.py`, which lies in the same folder. usage: database.py [modern | legacy] DB_PORT WEB_PORT
"""

import http.client
import json
import os
import sys
import threading

import psycopg
import stateful

# Off the list: what else is there, `stateful` takes for its own.
WEB_PORT, DB_PORT = int(sys.argv.pop()), int(sys.argv.pop())
kept = {}


def connect() -> psycopg.Connection:
    return psycopg.connect(host="db.internal", port=DB_PORT, dbname="app", user="anybody", connect_timeout=5, autocommit=True)


def query(params: dict) -> dict:
    """The rows of a statement, or what the server says."""
    try:
        with connect() as connection:
            return stateful.text([list(row) for row in connection.execute(params["arguments"]["sql"]).fetchall()])
    except psycopg.Error as error:
        return {**stateful.text(f"{error.sqlstate}: {error}"), "isError": True}


def get(web: http.client.HTTPSConnection) -> int:
    web.request("GET", "/pages/a", headers={"Authorization": f"Bearer {os.environ['WEB_TOKEN']}"})
    answer = web.getresponse()
    answer.read()
    return answer.status


def keep(_params: dict) -> dict:
    """Use a connection of each kind, and keep them; the role and the status."""
    web = http.client.HTTPSConnection("web.internal", WEB_PORT, timeout=5)
    kept.update(db=connect(), web=web)
    return stateful.text([kept["db"].execute("SELECT session_user::text").fetchone()[0], get(web)])


def reuse(_params: dict) -> dict:
    """What became of the connections that were kept."""
    return stateful.text([_outcome(lambda: kept["db"].execute("SELECT 1")), _outcome(lambda: get(_as_it_is(kept["web"])))])


def _as_it_is(web: http.client.HTTPSConnection) -> http.client.HTTPSConnection:
    web.auto_open = 0  # or it would connect anew
    return web


def _outcome(use: object) -> str:
    try:
        use()
    except (OSError, psycopg.Error, http.client.HTTPException) as error:
        return type(error).__name__
    return "works"


def ask_keeping(params: dict) -> dict:
    """Keep connections, ask a question, and tell what was and what then is: role, old connections, new role."""
    before = json.loads(keep(params)["content"][0]["text"])[0]
    stateful.ask("elicitation/create", stateful.FORM)
    old = json.loads(reuse(params)["content"][0]["text"])
    after = json.loads(keep(params)["content"][0]["text"])[0]
    return stateful.text({"before": before, "old": old, "after": after})


def busy(params: dict) -> dict:
    """As `keep`, with a thread that goes on dialling from then on."""

    def dial() -> None:
        while True:
            try:
                get(http.client.HTTPSConnection("web.internal", WEB_PORT, timeout=5))
            except (OSError, http.client.HTTPException):
                pass

    threading.Thread(target=dial, daemon=True).start()
    return keep(params)


def hold(params: dict) -> dict:
    """As `keep`, and have both connections for a while."""
    found = keep(params)
    return {**found, **stateful.nap(params)}


stateful.TOOLS |= {each.__name__: each for each in (query, keep, reuse, ask_keeping, busy, hold)}
if __name__ == "__main__":
    stateful.main()
