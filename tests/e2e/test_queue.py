"""Calls that wait for a box, through the whole runtime."""

from __future__ import annotations

import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab, lab_for, needs_oci
from live_gateway import configure, live_gateway, napping, naps

pytestmark = pytest.mark.root
RUNNER = Path(__file__).with_name("queue_runner.py")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("python", "q") as made:
        needs_oci()
        yield made
        assert made.left() == []


def test_a_thousand_waiting_calls_of_three_senders_are_only_memory_and_take_turns(lab: Lab) -> None:
    profile = lab.profile("queue", "engine: oci\nlimits: {memory: 64MiB}\n")
    done = lab.fumehood(profile, program=[sys.executable, str(RUNNER)], timeout=300)
    assert done.status == 0, done.stderr
    said = done.said
    assert said["waiting"] == 1000
    assert said["descriptors"] < 16, "the streams of the two that run"
    assert said["most"] <= 2
    assert said["left"] == [0, 0]
    # Two at once may end in another order than they began in.
    shares = Counter(said["served"][:45])
    assert max(shares.values()) - min(shares[name] for name in "abc") <= 3, said["served"]
    (refused,) = said["refused"]
    assert (refused["reason"], refused["rule"]) == ("busy", "queue.most")
    assert refused["retry_after_s"] >= 1
    with sqlite3.connect(f"file:{lab.state}/ledger/ledger.db?mode=ro", uri=True) as connection:
        ended = Counter(connection.execute("SELECT result, reason FROM records").fetchall())
        made = connection.execute("SELECT count(*) FROM records WHERE container IS NOT NULL").fetchone()[0]
    assert sum(ended.values()) == 1003
    assert ended["refused", "busy"] == 1
    assert 45 <= made <= 52, "who waited has had no box"


def test_who_waits_in_a_gateway_is_told_how_long_to_stay_away_and_a_cancelled_one_is_forgotten(lab: Lab) -> None:
    server, _ = napping(lab, "queued")
    more = "boxes: 1\nqueue: {wait: 300ms, most: 1}\n"
    with live_gateway(lab, configure(lab, f"{{servers: {{{server}}}}}", more)) as gateway:
        assert gateway.tools() == ["queued"]
        first = gateway.send("tools/call", name="queued", arguments={"seconds": 2})
        gateway.until(lambda: naps("queued"))
        told = [gateway.call("queued"), gateway.answer(first)["result"], gateway.call("queued")]
        assert gateway.end() == 0
    outcome = told[0]["_meta"]["fumehood/outcome"]
    assert (outcome["result"], outcome["reason"], outcome["rule"]) == ("refused", "busy", "queue.wait")
    assert outcome["retry_after_s"] >= 1
    assert [each.get("isError", False) for each in told] == [True, False, False]


def test_a_record_says_how_long_its_call_queued(lab: Lab) -> None:
    server, _ = napping(lab, "later")
    with live_gateway(lab, configure(lab, f"{{servers: {{{server}}}}}", "boxes: 1\n")) as gateway:
        assert gateway.tools() == ["later"]
        first = gateway.send("tools/call", name="later", arguments={"seconds": 1})
        gateway.until(lambda: naps("later"))
        task = gateway.call("later")["_meta"]["fumehood/task"]
        assert "result" in gateway.answer(first)
        assert gateway.end() == 0
    record = lab.fumehood("task", task, "--json").said
    assert record["timings_ms"]["queue"] > 100
    assert [event["facts"]["waited_s"] > 0.1 for event in record["events"] if event["state"] == "queued"] == [True]
    assert "queue" in lab.fumehood("task", task).stdout


def test_a_profiles_own_bound_holds_and_stops_no_other(lab: Lab) -> None:
    server, workspace = napping(lab, "narrow")
    other, _ = napping(lab, "wide")
    profile = lab.profile("napper-narrow", (lab.folder / "profiles/napper-narrow.yaml").read_text().removeprefix("extends: python\n").replace("wall: 30s", "wall: 30s, boxes: 1"))
    assert profile in server
    assert workspace.exists()
    with live_gateway(lab, configure(lab, f"{{servers: {{{server}, {other}}}}}")) as gateway:
        assert len(gateway.tools()) == 2
        first = gateway.send("tools/call", name="narrow__narrow", arguments={"seconds": 1})
        gateway.until(lambda: naps("narrow"))
        second = gateway.send("tools/call", name="narrow__narrow", arguments={})
        assert gateway.call("wide__wide")["content"][0]["text"] == "wide"
        tasks = [gateway.answer(number)["result"]["_meta"]["fumehood/task"] for number in (first, second)]
        assert gateway.end() == 0
    waited = [lab.fumehood("task", task, "--json").said["timings_ms"].get("queue", 0.0) for task in tasks]
    assert waited[0] == 0
    assert waited[1] > 100


def test_doctor_says_how_many_boxes_the_host_bears(lab: Lab) -> None:
    findings = lab.fumehood("doctor", "--json").said["findings"]
    (found,) = [finding["found"] for finding in findings if finding["what"] == "capacity"]
    assert "boxes of the default size at once" in found
