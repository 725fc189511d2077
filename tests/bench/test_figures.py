"""What the bench computes, and that its bare runtimes do our work. No test here looks at how long anything took."""

from pathlib import Path

import pytest
from commands import WORK, CannotRunError, bare_bundle, timed
from figures import Sample, Target, bar, figures, percentile, stage_medians

from fumehood.broker.engines import Spec
from fumehood.broker.engines.oci import runtime_spec
from fumehood.model import Frame, Limits, SeccompPolicy, SeccompRule, UserNamespace

POLICY = SeccompPolicy(name="some", default_errno=1, rules=(SeccompRule(names=("read",), action="allow"),))
FRAME = Frame(
    image="", docker_image=None, engine=None, runtime=None, cpu=0.5, memory_bytes=2**26, pids=7, open_files=64,
    tmp_bytes=2**20, seccomp=POLICY, user_namespace=UserNamespace.ALWAYS, accept_risk=(),
)  # fmt: skip


def _samples(*times: float) -> list[Sample]:
    return [Sample(ms=time) for time in times]


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 2), (51, 3), (75, 3), (99, 4), (100, 4)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], percent) == expected


def test_the_paired_ratio_survives_drift_that_meets_both_alike() -> None:
    ours, theirs = _samples(20, 200, 2000), _samples(10, 100, 1000)
    line = figures("ours", ours, peer="theirs", peer_samples=theirs, target=Target(ratio=1.9))
    assert (line.ratio_paired, line.ratio_p50, line.more_ms, line.met) == (2, 2, 100, False)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(ratio=2), True), (Target(ratio=1.99), False), (Target(more_ms=10), True), (Target(more_ms=9), False),
        (Target(at_most_ms=20), True), (Target(at_most_ms=19), False),
    ],
)  # fmt: skip
def test_a_target_is_judged_at_the_median(target: Target, *, met: bool) -> None:
    line = figures("ours", _samples(1, 20, 99), peer="theirs", peer_samples=_samples(5, 10, 11), target=target)
    assert line.met is met


def test_without_its_peer_nothing_is_claimed() -> None:
    line = figures("ours", _samples(1), peer="theirs", peer_samples=(), target=Target(ratio=1.3))
    assert (line.ratio_p50, line.ratio_paired, line.met) == (None, None, None)


def test_a_stage_that_some_calls_lack_counts_as_nothing_there() -> None:
    found = stage_medians([Sample(ms=3, stages_ms={"make": 1}), Sample(ms=3, stages_ms={"make": 3, "run": 2})])
    assert found == {"make": 2, "run": 1}


def test_bars_are_never_empty_and_never_too_long() -> None:
    assert [bar(value, 100, 2) for value in (0, 50, 75, 100)] == ["▏", "█", "█▌", "██"]


def test_a_bare_runtime_gets_our_namespaces_masks_limits_and_policy() -> None:
    root = Path("/images/some")
    bare = bare_bundle(FRAME, root, 5 * 65536, Limits())
    ours = runtime_spec(Spec(task="t", runtime_id="r", frame=FRAME, folder=root, id_base=5 * 65536), root, root, "/c")
    for name in ("namespaces", "uidMappings", "gidMappings", "maskedPaths", "readonlyPaths"):
        assert bare["linux"][name] == ours["linux"][name]
    for name in ("user", "noNewPrivileges", "capabilities", "terminal"):
        assert bare["process"][name] == ours["process"][name]
    assert bare["root"] == ours["root"]
    assert bare["process"]["args"] == list(WORK)
    assert bare["linux"]["resources"] == {
        "memory": {"limit": 2**26, "swap": 2**26}, "cpu": {"quota": 50_000, "period": 100_000}, "pids": {"limit": 7},
    }  # fmt: skip
    assert bare["linux"]["seccomp"]["syscalls"][0]["names"] == ["read"]


def test_a_contender_that_does_not_do_the_work_has_no_time() -> None:
    with pytest.raises(CannotRunError, match="ended 0"):
        timed(("/bin/true",), b"1\n")
    with pytest.raises(CannotRunError, match="ended 1"):
        timed(("/bin/false",), None)
