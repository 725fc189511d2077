"""Profiles out of files: the ways from a name or a path to the frozen value.

The slow way reads and judges every file anew. `load` asks `kept` first, when it is given a place for that. Nothing of a
profile but its own folders decides which seccomp file it gets: names again, never paths. What imports pydantic is
imported where it is used: the fast way never gets there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fumehood.faults import Refused
from fumehood.model import Deny, Profile, SeccompPolicy
from fumehood.profile.files import NAME_PATTERN, SECCOMP, Files, is_path, names_in, search_folders, shipped_folder
from fumehood.profile.kept import keep, recall
from fumehood.profile.problems import Problem, Problems, nearest
from fumehood.profile.source import Source, parse
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from fumehood.profile.documents import ProfileDocument
    from fumehood.profile.seccomp import SeccompDocument

__all__ = [
    "Loaded", "is_path", "load", "load_fully", "load_seccomp", "names_in", "search_folders",
    "shipped_folder",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A profile with the files it came from, for lint and explain. `parent` is the resolved profile it extends."""

    profile: Profile
    source: Source
    document: ProfileDocument
    own: ProfileDocument
    parent: Profile | None


def load(name_or_path: str, folders: Sequence[Path], uid: int, *, kept: Path | None = None) -> Profile:
    """The profile. Raises Refused: PROFILE_UNKNOWN, PROFILE_INVALID, UNENFORCEABLE, or FumehoodError: CONFIG_UNSAFE.

    `kept` is a folder that only our own user can enter: profiles are kept there, and recalled while nothing changed.
    """
    if kept is not None and (known := recall(kept, name_or_path, folders, uid)) is not None:
        return known
    files = Files(folders, uid)
    try:
        profile = _load(name_or_path, files).profile
    except Problems as problems:
        raise problems.refused() from None
    if kept is not None:
        keep(kept, name_or_path, files, profile)
    return profile


def load_fully(name_or_path: str, folders: Sequence[Path], uid: int) -> Loaded:
    """The profile with its sources. Raises Problems as well."""
    return _load(name_or_path, Files(folders, uid))


def load_seccomp(name: str, folders: Sequence[Path], uid: int) -> SeccompPolicy:
    """A seccomp file by name. Raises Refused with PROFILE_UNKNOWN, and Problems."""
    return _load_seccomp(name, Files(folders, uid))


def _load(name_or_path: str, files: Files) -> Loaded:
    from fumehood.profile import resolve
    from fumehood.profile.documents import ProfileDocument
    from fumehood.profile.validation import validate

    source, title = _read_profile(name_or_path, files)
    own = validate(source, ProfileDocument)
    document, parent = own, None
    if own.extends is not None:
        document, parent = _extend(source, own, files)
    problems = resolve.judge(document, source)
    policy: SeccompPolicy | None = None
    try:
        policy = _load_seccomp(document.seccomp, files)
    except Refused as refused:
        if refused.reason is not Reason.PROFILE_UNKNOWN:
            raise
        problems.append(source.problem(("seccomp",), refused.detail))
    if problems or policy is None:
        raise Problems(problems)
    value = resolve.profile(title, document, policy)
    return Loaded(profile=value, source=source, document=document, own=own, parent=parent)


def _load_seccomp(name: str, files: Files) -> SeccompPolicy:
    from fumehood.profile import seccomp

    source, document = _read_seccomp(name, files)
    if document.extends is None:
        return seccomp.policy(name, document)
    try:
        _, parent = _read_seccomp(document.extends, files)
    except Refused as refused:
        raise Problems([source.problem(("extends",), refused.detail)]) from None
    if parent.extends is not None:
        raise Problems([_one_level(source, document.extends, parent.extends)])
    return seccomp.policy(name, document, parent)


def _extend(source: Source, own: ProfileDocument, files: Files) -> tuple[ProfileDocument, Profile]:
    from fumehood.profile import resolve
    from fumehood.profile.documents import ProfileDocument
    from fumehood.profile.validation import validate

    name = own.extends or ""
    if name == Path(source.file).stem:
        raise Problems([source.problem(("extends",), "expected another profile than this one")])
    try:
        parent_source, _ = _read_profile(name, files)
    except Refused as refused:
        raise Problems([source.problem(("extends",), refused.detail)]) from None
    parent = validate(parent_source, ProfileDocument)
    if parent.extends is not None:
        raise Problems([_one_level(source, name, parent.extends)])
    if problems := resolve.judge(parent, parent_source):
        raise Problems(problems)
    policy = _load_seccomp(parent.seccomp, files)
    return resolve.merge(parent, own), resolve.profile(name, parent, policy)


def _one_level(source: Source, name: str, further: str) -> Problem:
    return source.problem(("extends",), f"expected one level; {name} itself extends {further}")


def _read_profile(name: str, files: Files) -> tuple[Source, str]:
    """A profile's text by path or name, and what it is called in records."""
    if is_path(name):
        path = str(Path(name).absolute())
        try:
            return parse(files.read(None, path), name), path
        except FileNotFoundError:
            raise _unknown(f"there is no file {name}") from None
    if re.fullmatch(NAME_PATTERN, name):
        for folder in files.folders:
            try:
                return parse(files.read(folder, f"{name}.yaml"), str(folder / f"{name}.yaml")), name
            except FileNotFoundError:
                continue
    known = (known for known, _ in names_in(files.folders, files.uid))
    raise _unknown(f"there is no profile {name!r}{nearest(name, known)}")


def _read_seccomp(name: str, files: Files) -> tuple[Source, SeccompDocument]:
    from fumehood.profile import seccomp

    for folder in files.folders:
        try:
            text = files.read(folder, f"{SECCOMP}/{name}.yaml")
        except FileNotFoundError:
            continue
        source = parse(text, str(folder / SECCOMP / f"{name}.yaml"))
        return source, seccomp.read(source)
    known = (entry.removesuffix(".yaml") for folder in files.folders for entry in files.listing(folder / SECCOMP))
    raise _unknown(f"there is no seccomp file {name!r}{nearest(name, known)}")


def _unknown(detail: str) -> Refused:
    return Refused(Deny(reason=Reason.PROFILE_UNKNOWN, rule="profile.name", detail=detail))
