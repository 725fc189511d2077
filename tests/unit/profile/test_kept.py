"""Kept profiles: equal to what they were made from, used only while every file is as it was, and never in the way."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fumehood import launch, model, reach
from fumehood.faults import FumehoodError, Refused
from fumehood.profile import kept, loader, resolve
from fumehood.profile.files import Files, names_in, shipped_folder
from fumehood.reasons import Reason
from fumehood.state import StateFolder

SECCOMP = "default: EPERM\nrules:\n  - {reason: enough to run, names: [read, write]}\n"


class Cupboard:
    """A shelf, a folder searched before it, a place for entries, and how often a load went the slow way."""

    def __init__(self, shelf: Any, base: Path) -> None:
        self.shelf = shelf
        self.earlier = base / "earlier"
        self.place = base / "kept"
        self.earlier.mkdir(mode=0o755)
        self.place.mkdir(mode=0o700)
        self.folders = (self.earlier, *shelf.folders)
        self.slow = 0

    def load(self, name: str = "p") -> model.Profile:
        return loader.load(name, self.folders, os.getuid(), kept=self.place)

    def anew(self, name: str = "p") -> model.Profile:
        return loader.load(name, self.folders, os.getuid())

    def entries(self) -> list[Path]:
        return sorted(self.place.iterdir())

    def ways(self, name: str = "p") -> tuple[int, model.Profile]:
        """How many slow loads one load takes, and what it gives; the answer is always what a fresh load gives."""
        expected = self.anew(name)
        before = self.slow
        found = self.load(name)
        assert found == expected
        return self.slow - before, found


@pytest.fixture
def cupboard(shelf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cupboard:
    made = Cupboard(shelf, tmp_path)
    slowly = kept.keep

    def counted(*arguments: Any) -> None:
        made.slow += 1
        slowly(*arguments)

    monkeypatch.setattr(loader, "keep", counted)
    shelf.put("seccomp/tight", SECCOMP)
    shelf.put("base-one", "image: a\nseccomp: tight\nlimits: {pids: 9}\n")
    shelf.put("p", "extends: base-one\nenvironment: {A: '1'}\n")
    return made


def test_the_second_load_is_the_kept_profile(cupboard: Cupboard) -> None:
    assert cupboard.ways()[0] == 1
    steps, found = cupboard.ways()
    assert steps == 0
    assert (found.image, found.limits.pids, found.seccomp.name) == ("a", 9, "tight")
    (entry,) = cupboard.entries()
    assert entry.stat().st_mode & 0o777 == 0o600


def test_without_a_place_nothing_is_kept(cupboard: Cupboard) -> None:
    cupboard.anew()
    assert (cupboard.slow, cupboard.entries()) == (0, [])


def test_the_second_load_imports_no_parser(cupboard: Cupboard) -> None:
    code = (
        "import os, sys; from pathlib import Path; import fumehood.profile as p;"
        "from fumehood.profile.loader import is_path;"
        "found = p.load('p', [Path(f) for f in sys.argv[2:]], os.getuid(), kept=Path(sys.argv[1]));"
        "print(found.digest, any(m.split('.')[0] in ('pydantic', 'pydantic_core', 'ruamel') for m in sys.modules))"
    )
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    argv = [sys.executable, "-c", code, str(cupboard.place), *map(str, cupboard.folders)]
    said = [
        subprocess.run(argv, env=env, timeout=30, check=True, capture_output=True, text=True).stdout.split()
        for _ in range(2)
    ]
    digest = cupboard.anew().digest
    assert said == [[digest, "True"], [digest, "False"]]


@pytest.mark.parametrize(
    ("name", "text", "seen"),
    [
        ("p", "extends: base-one\nenvironment: {A: '2'}\n", lambda found: found.environment == (("A", "2"),)),
        ("base-one", "image: b\nseccomp: tight\n", lambda found: found.image == "b"),
        ("seccomp/tight", SECCOMP.replace(", write", ""), lambda found: found.seccomp.rules[0].names == ("read",)),
    ],
)
def test_an_edit_of_any_file_it_was_made_from_counts(cupboard: Cupboard, name: str, text: str, seen: Any) -> None:
    before = cupboard.load()
    path = cupboard.shelf.folder / f"{name}.yaml"
    old = path.stat()
    cupboard.shelf.put(name, text.ljust(old.st_size, "\n"))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))  # what a file says counts, not its dates
    steps, found = cupboard.ways()
    assert steps == 1
    assert seen(found)
    assert found.digest != before.digest
    assert cupboard.ways()[0] == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [("p", "image: mine\n"), ("base-one", "image: mine\n"), ("seccomp/tight", SECCOMP.replace(", write", ""))],
)
def test_a_new_file_in_an_earlier_folder_shadows_at_once(cupboard: Cupboard, name: str, text: str) -> None:
    before = cupboard.load()
    path = cupboard.earlier / f"{name}.yaml"
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    steps, found = cupboard.ways()
    assert steps == 1
    assert found.digest != before.digest
    path.unlink()
    assert cupboard.ways() == (1, before)


def test_a_file_that_is_gone_is_gone(cupboard: Cupboard) -> None:
    cupboard.load()
    (cupboard.shelf.folder / "p.yaml").unlink()
    with pytest.raises(Refused) as caught:
        cupboard.load()
    assert caught.value.reason is Reason.PROFILE_UNKNOWN


@pytest.mark.parametrize("name", ["p", "base-one", "seccomp/tight"])
@pytest.mark.parametrize("how", ["mode", "folder", "owner"])
def test_a_file_that_others_can_write_by_now_is_refused(cupboard: Cupboard, name: str, how: str) -> None:
    cupboard.load()
    path = cupboard.shelf.folder / f"{name}.yaml"
    if how == "mode":
        path.chmod(0o666)
    elif how == "folder":
        path.parent.chmod(0o777)
    elif os.getuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        pytest.skip("needs root to give a file away")
    with pytest.raises(FumehoodError) as fresh:
        cupboard.anew()
    with pytest.raises(FumehoodError) as caught:
        cupboard.load()
    assert caught.value.reason is Reason.CONFIG_UNSAFE
    assert str(caught.value) == str(fresh.value)


def test_an_unsafe_file_that_now_shadows_is_refused(cupboard: Cupboard) -> None:
    cupboard.load()
    path = cupboard.earlier / "p.yaml"
    path.write_text("image: mine\n")
    path.chmod(0o666)
    with pytest.raises(FumehoodError) as caught:
        cupboard.load()
    assert caught.value.reason is Reason.CONFIG_UNSAFE


def test_what_is_refused_is_not_kept(cupboard: Cupboard) -> None:
    cupboard.shelf.put("p", "image: 1\n")
    for _ in range(2):
        with pytest.raises(Refused):
            cupboard.load()
    assert cupboard.entries() == []


def test_other_code_makes_its_own_entry(cupboard: Cupboard, monkeypatch: pytest.MonkeyPatch) -> None:
    cupboard.load()
    monkeypatch.setattr(kept, "_CODE", "another")
    assert [cupboard.ways()[0] for _ in range(2)] == [1, 0]


def test_the_code_is_told_apart_by_its_files(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text("1")
    first = kept.code_digest([source])
    assert kept.code_digest([source]) == first
    os.utime(source, ns=(1, 1))
    second = kept.code_digest([source])
    source.write_text("11")
    os.utime(source, ns=(1, 1))
    assert len({first, second, kept.code_digest([source])}) == 3


def test_another_uid_or_folder_is_another_question(cupboard: Cupboard) -> None:
    cupboard.load()
    assert kept.recall(cupboard.place, "p", cupboard.folders, os.getuid()) is not None
    assert kept.recall(cupboard.place, "p", cupboard.folders, os.getuid() + 1) is None
    assert kept.recall(cupboard.place, "p", cupboard.folders[1:], os.getuid()) is None


def test_a_relative_path_means_the_directory_it_is_used_in(
    cupboard: Cupboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir(mode=0o755)
        (tmp_path / name / "q.yaml").write_text(f"image: {name}\n")
        (tmp_path / name / "q.yaml").chmod(0o644)
    for steps in (1, 0):
        for name in ("one", "two"):
            monkeypatch.chdir(tmp_path / name)
            taken, found = cupboard.ways("q.yaml")
            assert (taken, found.image, found.name) == (steps, name, str(tmp_path / name / "q.yaml"))
    (tmp_path / "two" / "q.yaml").chmod(0o666)
    with pytest.raises(FumehoodError) as caught:
        cupboard.load("q.yaml")
    assert caught.value.reason is Reason.CONFIG_UNSAFE


def _mutations(whole: Any) -> Iterator[Any]:
    """Every way to lose, or to change the type of, one value of an entry's profile."""
    if isinstance(whole, dict):
        for key in whole:
            yield {other: value for other, value in whole.items() if other != key}
            if key == "scope" and whole[key] == {}:
                continue  # a credential's: any JSON object is one
            for changed in _mutations(whole[key]):
                yield {**whole, key: changed}
    elif isinstance(whole, list) and whole:
        for changed in _mutations(whole[0]):
            yield [changed, *whole[1:]]
    yield {"unexpected": 1}
    yield [[1]]
    if not isinstance(whole, bool) and whole is not None:
        yield True


def test_an_entry_of_another_form_is_ignored_and_replaced(cupboard: Cupboard) -> None:
    cupboard.load()
    (entry,) = cupboard.entries()
    good = entry.read_text()
    stored = json.loads(good)
    bad = [
        "", "{", "null", "[]", "{}", "1", '"x"', "\0" * 100, good[:-1], "[" * 100_000, good + " " * kept.ENTRY_BYTES,
        json.dumps({**stored, "trace": []}),
        json.dumps({**stored, "trace": 1}),
        json.dumps({**stored, "trace": [[1, 2, 3]]}),
        json.dumps({**stored, "trace": [[None, None, None]]}),
        json.dumps({**stored, "trace": [["a"]]}),
        json.dumps({**stored, "trace": [["\0", "a", None]]}),
        *(json.dumps({name: value for name, value in stored.items() if name != gone}) for gone in stored),
    ]  # fmt: skip
    for text in bad:
        entry.write_text(text)
        assert cupboard.ways()[0] == 1, text[:80]
        assert entry.read_text() == good


def test_every_value_of_a_kept_profile_has_its_type(cupboard: Cupboard) -> None:
    cupboard.shelf.put("seccomp/tests", _EVERY_SECCOMP)
    cupboard.shelf.put("p", _EVERY_FIELD)
    stored = json.loads(json.dumps(kept.encoded(cupboard.anew())))
    tried = list(_mutations(stored))
    assert len(tried) > 150
    for changed in tried:
        with pytest.raises((ValueError, TypeError)):
            kept.decoded(changed)


def test_an_entry_that_others_could_write_is_ignored(cupboard: Cupboard) -> None:
    cupboard.load()
    (entry,) = cupboard.entries()
    entry.chmod(0o666)
    assert cupboard.ways()[0] == 1
    assert entry.stat().st_mode & 0o777 == 0o600
    cupboard.place.chmod(0o777)
    assert [cupboard.ways()[0] for _ in range(2)] == [1, 1]


def test_where_nothing_can_be_kept_loading_works(cupboard: Cupboard) -> None:
    cupboard.place.rmdir()
    assert [cupboard.ways()[0] for _ in range(2)] == [1, 1]
    cupboard.place.write_text("no folder")
    assert [cupboard.ways()[0] for _ in range(2)] == [1, 1]
    cupboard.place.unlink()
    cupboard.place.mkdir(mode=0o700)
    cupboard.load()
    (entry,) = cupboard.entries()
    entry.unlink()
    entry.mkdir()  # cannot be renamed over
    assert [cupboard.ways()[0] for _ in range(2)] == [1, 1]
    assert cupboard.entries() == [entry]


def test_entries_are_bounded_and_the_oldest_go_first(cupboard: Cupboard) -> None:
    for number in range(kept.ENTRIES + 8):
        path = cupboard.place / f".left-{number:03}"
        path.write_text("")
        os.utime(path, (number, number))
    cupboard.load()
    names = [entry.name for entry in cupboard.entries()]
    assert len(names) == kept.ENTRIES
    assert ".left-008" not in names
    assert ".left-009" in names
    assert cupboard.ways()[0] == 0


def test_a_profile_too_large_to_read_back_is_not_kept(cupboard: Cupboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "ENTRY_BYTES", 100)
    cupboard.load()
    assert cupboard.entries() == []


def test_a_profile_that_would_come_back_different_is_not_kept(cupboard: Cupboard) -> None:
    profile = cupboard.anew()
    kept.keep(cupboard.place, "p", Files(cupboard.folders, 0), replace(profile, limits=model.Limits(cpu=2)))
    assert cupboard.entries() == []  # 2 is no 2.0: the digests would differ


def test_the_trace_is_of_the_text_that_was_parsed(cupboard: Cupboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody saves a profile between the read and the keeping: the entry must not pass for the new text."""

    def parse(text: str, file: str) -> Any:
        cupboard.shelf.put("p", "image: later\n")
        return original(text, file)

    original = loader.parse
    monkeypatch.setattr(loader, "parse", parse)
    assert cupboard.load().image == "a"
    monkeypatch.undo()
    assert cupboard.load().image == "later"


def test_every_shipped_profile_comes_back_whole() -> None:
    names = [name for name, _ in names_in((shipped_folder(),), os.getuid())]
    assert names
    for name in names:
        _comes_back(loader.load(name, (shipped_folder(),), os.getuid()))


_EVERY_SECCOMP = """
default: ENOSYS
rules:
  - {reason: by its argument, names: [socket], when: [{argument: 0, mask: 18446744073709551615, values: [1]}]}
  - {reason: refused by name, names: [bpf], action: errno, errno: EPERM}
"""
_EVERY_FIELD = """
image: a
command: [x]
tools: {allow: [b, a]}
resources: {allow: [r]}
prompts: {allow: [p]}
engine: oci
runtime: crun
limits: {idle: 1s}
filesystem: {workspace: ro, mounts: [{source: /srv, name: s}]}
seccomp: tests
environment: {A: b}
accept_risk: [x]
network:
  egress: [{http: a.example, allow: ["GET /"], addresses: [10.0.0.0/8], credential: k}]
  limits: {bytes_per_second: 1MiB}
credentials: {k: {variable: V}}
"""

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_TEXTS = st.lists(_TEXT, max_size=3).map(tuple)
_NAMES = st.none() | st.frozensets(_TEXT, max_size=3)
_COUNT = st.integers(0, 2**64 - 1)
_SECONDS = st.floats(0, 1e9, allow_nan=False)
_TEST = st.builds(model.ArgumentTest, index=st.integers(0, 5), op=_TEXT, value=_COUNT, mask=_COUNT)
_RULE = st.builds(
    model.SeccompRule, names=_TEXTS, action=_TEXT, errno=_COUNT, tests=st.lists(_TEST, max_size=2).map(tuple)
)
_EGRESS = st.builds(
    reach.EgressRule,
    kind=st.sampled_from(reach.EgressKind), name=_TEXT, ports=st.lists(st.integers(1, 65535), max_size=3).map(tuple),
    addresses=_TEXTS, allow=st.none() | _TEXTS, credential=st.none() | _TEXT, insecure=st.booleans(),
)
_NETWORK_LIMITS = st.builds(
    reach.NetworkLimits,
    connections=_COUNT, bytes_out=_COUNT, bytes_in=_COUNT, bytes_per_second=st.none() | _COUNT, dns_per_second=_COUNT,
)
_USE = st.builds(
    reach.CredentialUse,
    name=_TEXT, source=_TEXT, deliver=st.sampled_from(reach.Delivery), header=st.none() | _TEXT, query=st.none() | _TEXT,
    scheme=st.sampled_from(reach.Scheme), username=st.none() | _TEXT, variable=st.none() | _TEXT, file=st.none() | _TEXT,
    scope=st.dictionaries(_TEXT, st.none() | _TEXT | st.lists(_TEXT, max_size=2) | st.integers(), max_size=2),
)
_PROFILE = st.builds(
    model.Profile,
    name=_TEXT, digest=st.just(""), image=_TEXT, command=_TEXTS, scope=st.sampled_from(model.Scope),
    tools=_NAMES, resources=_NAMES, prompts=_NAMES, engine=st.none() | _TEXT, runtime=st.none() | _TEXT,
    limits=st.builds(
        model.Limits,
        cpu=_SECONDS, memory_bytes=_COUNT, pids=_COUNT, wall_s=_SECONDS, idle_s=st.none() | _SECONDS,
        output_bytes=_COUNT, result_bytes=_COUNT, disk_bytes=_COUNT, disk_unlimited=st.booleans(), tmp_bytes=_COUNT,
        open_files=_COUNT,
    ),
    filesystem=st.builds(
        model.Filesystem,
        workspace=st.sampled_from(model.WorkspaceMode), commit=st.sampled_from(model.CommitMode), protect=_TEXTS,
        mounts=st.lists(st.builds(model.ReadOnlyMount, source=_TEXT, name=_TEXT), max_size=2).map(tuple),
    ),
    seccomp=st.builds(
        model.SeccompPolicy, name=_TEXT, default_errno=st.none() | _COUNT, rules=st.lists(_RULE, max_size=2).map(tuple)
    ),
    secrets=st.builds(
        model.Secrets,
        arguments=st.sampled_from(model.OnSecret), bodies=st.sampled_from(model.OnSecret), outputs=st.sampled_from(model.OnSecret),
        hidden=st.sampled_from(model.OnHidden),
        allow=st.lists(st.builds(model.Excuse, rule=_TEXT, where=_TEXT, reason=_TEXT), max_size=2).map(tuple),
    ),
    environment=st.lists(st.tuples(_TEXT, _TEXT), max_size=2).map(tuple),
    user_namespace=st.sampled_from(model.UserNamespace), accept_risk=_TEXTS,
    network=st.builds(reach.Network, rules=st.lists(_EGRESS, max_size=2).map(tuple), limits=_NETWORK_LIMITS),
    credentials=st.lists(_USE, max_size=2).map(tuple), upstream=st.none() | _TEXT,
)  # fmt: skip


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(_PROFILE)
def test_any_profile_comes_back_whole(value: model.Profile) -> None:
    _comes_back(replace(value, digest=resolve.profile_digest(value)))


def _comes_back(value: model.Profile) -> None:
    stored = json.dumps(kept.encoded(value))
    found = kept.decoded(json.loads(stored))
    assert found == value
    assert resolve.profile_digest(found) == value.digest
    assert found.seccomp.digest == value.seccomp.digest
    assert hash(found) == hash(value)  # tuples and frozensets all the way down
    assert json.dumps(kept.encoded(found)) == stored
    _same_types(found, value)


def _same_types(found: Any, value: Any) -> None:
    assert type(found) is type(value)
    if hasattr(value, "__dataclass_fields__"):
        for each in fields(value):
            _same_types(getattr(found, each.name), getattr(value, each.name))
    elif isinstance(value, tuple):
        for one, other in zip(found, value, strict=True):
            _same_types(one, other)


def test_the_state_folder_has_a_place_that_only_its_owner_enters() -> None:
    assert launch._FOLDERS[StateFolder(Path("/x")).profiles.name] == 0o700
