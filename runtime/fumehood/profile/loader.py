"""Where profiles and seccomp files are found, and reading them.

Folders in order: those the configuration names, the user's, the system's, the ones that ship. A name is looked up in
these and nowhere else, and the first file of that name is taken; an unsafe one is refused, not passed over. The working
directory is never searched: a box, or a cloned repository, could have put a profile there. A path is for the
operator's own command line alone (`is_path`), and is checked like everything else (`safe_files`).
Nothing of a profile but its own folders decides which seccomp file it gets: names again, never paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fumehood.faults import FumehoodError, Refused
from fumehood.model import Deny, Profile, ReadOnlyMount, SeccompPolicy
from fumehood.profile import resolve, seccomp
from fumehood.profile.documents import NAME_PATTERN, ProfileDocument
from fumehood.profile.problems import Problem, Problems, nearest
from fumehood.profile.seccomp import SeccompDocument
from fumehood.profile.source import Source, parse
from fumehood.profile.validation import validate
from fumehood.reasons import Reason
from fumehood.safe_files import inside, list_trusted, read_trusted
from fumehood.shipping import shipped

SECCOMP = "seccomp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A profile with the files it came from, for lint and explain. `parent` is the resolved profile it extends."""

    profile: Profile
    source: Source
    document: ProfileDocument
    own: ProfileDocument
    parent: Profile | None


def shipped_folder() -> Path:
    """The folder of the profiles that ship: inside the package, or the checkout's."""
    return shipped("profiles")


def search_folders(configured: Sequence[str], env: Mapping[str, str]) -> tuple[Path, ...]:
    """The folders in which profiles are looked up, first match first."""
    own = env.get("XDG_CONFIG_HOME", "")
    if not own.startswith("/"):
        own = f"{env['HOME']}/.config" if env.get("HOME", "").startswith("/") else ""
    user = (Path(own) / "fumehood" / "profiles",) if own else ()
    return (*map(Path, configured), *user, Path("/etc/fumehood/profiles"), shipped_folder())


def is_path(name: str) -> bool:
    """Whether the operator means a file and not a name."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def load(name_or_path: str, folders: Sequence[Path], uid: int) -> Profile:
    """The profile. Raises Refused: PROFILE_UNKNOWN, PROFILE_INVALID, UNENFORCEABLE, or FumehoodError: CONFIG_UNSAFE."""
    try:
        return load_fully(name_or_path, folders, uid).profile
    except Problems as problems:
        raise problems.refused() from None


def load_fully(name_or_path: str, folders: Sequence[Path], uid: int) -> Loaded:
    """The profile with its sources. Raises Problems as well."""
    source, title = _read_profile(name_or_path, folders, uid)
    own = validate(source, ProfileDocument)
    document, parent = own, None
    if own.extends is not None:
        document, parent = _extend(source, own, folders, uid)
    problems = resolve.judge(document, source)
    policy: SeccompPolicy | None = None
    try:
        policy = load_seccomp(document.seccomp, folders, uid)
    except Refused as refused:
        if refused.reason is not Reason.PROFILE_UNKNOWN:
            raise
        problems.append(source.problem(("seccomp",), refused.detail))
    if problems or policy is None:
        raise Problems(problems)
    value = resolve.profile(title, document, policy)
    return Loaded(profile=value, source=source, document=document, own=own, parent=parent)


def load_seccomp(name: str, folders: Sequence[Path], uid: int) -> SeccompPolicy:
    """A seccomp file by name. Raises Refused with PROFILE_UNKNOWN, and Problems."""
    source, document = _read_seccomp(name, folders, uid)
    if document.extends is None:
        return seccomp.policy(name, document)
    try:
        _, parent = _read_seccomp(document.extends, folders, uid)
    except Refused as refused:
        raise Problems([source.problem(("extends",), refused.detail)]) from None
    if parent.extends is not None:
        raise Problems([_one_level(source, document.extends, parent.extends)])
    return seccomp.policy(name, document, parent)


def names_in(folders: Sequence[Path], uid: int) -> Iterator[tuple[str, Path]]:
    """Every profile name that can be used, with its file. Unsafe folders are passed over: nothing is read from them."""
    seen: set[str] = set()
    for folder in folders:
        try:
            entries = _list(folder, uid)
        except FumehoodError:
            continue
        for entry in entries:
            name = entry.removesuffix(".yaml")
            if name != entry and re.fullmatch(NAME_PATTERN, name) and name not in seen:
                seen.add(name)
                yield name, folder / entry


def check_mounts(mounts: Sequence[ReadOnlyMount], roots: Sequence[str]) -> Deny | None:
    """The refusal of a mount outside the allowed roots. Textual: the broker checks what it opens."""
    for mount in mounts:
        if not any(inside(mount.source, root) for root in roots):
            allowed = ", ".join(roots) or "none"
            return Deny(
                reason=Reason.WORKSPACE_NOT_ALLOWED,
                rule="profile.mounts",
                detail=f"{mount.source} is below no allowed mount root ({allowed})",
                remedy="Add its root to `mount_roots` in fumehood.yaml if that is right.",
            )
    return None


def _extend(source: Source, own: ProfileDocument, folders: Sequence[Path], uid: int) -> tuple[ProfileDocument, Profile]:
    name = own.extends or ""
    if name == Path(source.file).stem:
        raise Problems([source.problem(("extends",), "expected another profile than this one")])
    try:
        parent_source, _ = _read_profile(name, folders, uid)
    except Refused as refused:
        raise Problems([source.problem(("extends",), refused.detail)]) from None
    parent = validate(parent_source, ProfileDocument)
    if parent.extends is not None:
        raise Problems([_one_level(source, name, parent.extends)])
    if problems := resolve.judge(parent, parent_source):
        raise Problems(problems)
    policy = load_seccomp(parent.seccomp, folders, uid)
    return resolve.merge(parent, own), resolve.profile(name, parent, policy)


def _one_level(source: Source, name: str, further: str) -> Problem:
    return source.problem(("extends",), f"expected one level; {name} itself extends {further}")


def _read_profile(name: str, folders: Sequence[Path], uid: int) -> tuple[Source, str]:
    """A profile's text by path or name, and what it is called in records."""
    if is_path(name):
        path = Path(name).absolute()
        try:
            return parse(read_trusted(path, uid), name), str(path)
        except FileNotFoundError:
            raise _unknown(f"there is no file {name}") from None
    if re.fullmatch(NAME_PATTERN, name):
        for folder in folders:
            path = folder / f"{name}.yaml"
            try:
                return parse(_read(folder, f"{name}.yaml", uid), str(path)), name
            except FileNotFoundError:
                continue
    raise _unknown(f"there is no profile {name!r}{nearest(name, (known for known, _ in names_in(folders, uid)))}")


def _read_seccomp(name: str, folders: Sequence[Path], uid: int) -> tuple[Source, SeccompDocument]:
    for folder in folders:
        try:
            text = _read(folder, f"{SECCOMP}/{name}.yaml", uid)
        except FileNotFoundError:
            continue
        source = parse(text, str(folder / SECCOMP / f"{name}.yaml"))
        return source, seccomp.read(source)
    known = (entry.removesuffix(".yaml") for folder in folders for entry in _list(folder / SECCOMP, uid))
    raise _unknown(f"there is no seccomp file {name!r}{nearest(name, known)}")


def _read(folder: Path, name: str, uid: int) -> str:
    if folder == shipped_folder():
        # Whoever can write these can write our code, which lies beside them and runs already.
        return (folder / name).read_text(encoding="utf-8")
    return read_trusted(folder / name, uid)


def _list(folder: Path, uid: int) -> list[str]:
    if folder in (shipped_folder(), shipped_folder() / SECCOMP):
        return sorted(entry.name for entry in folder.iterdir())
    return list_trusted(folder, uid)


def _unknown(detail: str) -> Refused:
    return Refused(Deny(reason=Reason.PROFILE_UNKNOWN, rule="profile.name", detail=detail))
