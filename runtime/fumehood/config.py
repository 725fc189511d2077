"""`fumehood.yaml`: what the operator decides for the whole host, as one frozen value.

Looked for in `--config`, `FUMEHOOD_CONFIG`, the user's folder and the system's, and nowhere else; the first that exists
is the configuration, and files are never mixed. Never the working directory (rule 6): a box plants `fumehood.yaml` in
its workspace and waits for the operator to run a command there. A file that anybody else could have written is
refused, not passed over. Without a file everything has its default, and no parser is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fumehood.approvals.config import ApprovalsConfig
from fumehood.faults import FumehoodError
from fumehood.gateway_config import GatewayConfig
from fumehood.outward_config import OutwardConfig
from fumehood.policies.config import PolicyConfig
from fumehood.reasons import Reason
from fumehood.safe_files import read_trusted

if TYPE_CHECKING:
    from pydantic import BaseModel

    from fumehood.profile.source import Source

MAX_BOXES = 4095  # id ranges 1..4095 of the reserved pool; range 0 owns image files


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration with every default filled in. `file` is where it came from."""

    state: str | None = None
    engine: str | None = None
    boxes: int = 16
    workspace_roots: tuple[str, ...] = ()
    mount_roots: tuple[str, ...] = ()
    profile_folders: tuple[str, ...] = ()
    docker_host: str | None = None
    accept_risk: tuple[str, ...] = ()
    runtimes: tuple[tuple[str, str], ...] = ()
    results_kept_s: float = 24 * 3600.0
    queue_wait_s: float = 30.0
    queue_most: int = 1024
    gateway: GatewayConfig | None = None
    outward: OutwardConfig = field(default_factory=OutwardConfig)
    approvals: ApprovalsConfig | None = None
    witnesses: tuple[tuple[str, str, bool], ...] = ()
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    file: str | None = None


def candidates(env: Mapping[str, str]) -> tuple[Path, ...]:
    """The user's and the system's file, in order."""
    base = env.get("XDG_CONFIG_HOME", "")
    if not base.startswith("/"):
        # A relative HOME would be the working directory by another name.
        base = f"{env['HOME']}/.config" if env.get("HOME", "").startswith("/") else ""
    user = (Path(base) / "fumehood" / "fumehood.yaml",) if base else ()
    return (*user, Path("/etc/fumehood/fumehood.yaml"))


def load(explicit: str | None, env: Mapping[str, str], uid: int) -> Config:
    """The configuration for a caller of this uid. Raises FumehoodError: CONFIG_INVALID or CONFIG_UNSAFE."""
    if explicit is not None:
        return _read(Path(explicit).absolute(), uid, asked_by="--config")
    if named := env.get("FUMEHOOD_CONFIG"):
        if not named.startswith("/"):
            raise FumehoodError(
                Reason.CONFIG_UNSAFE,
                f"FUMEHOOD_CONFIG={named} would be looked for in the working directory",
                remedy="Give its absolute path.",
            )
        return _read(Path(named), uid, asked_by="FUMEHOOD_CONFIG")
    for path in candidates(env):
        # lexists: a dangling link is somebody's mistake to hear about, not a missing file.
        if _exists(path):
            return _read(path, uid, asked_by="")
    return Config()


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path, uid: int, *, asked_by: str) -> Config:
    try:
        text = read_trusted(path, uid)
    except FileNotFoundError:
        said = f"{asked_by} names {path}, which does not exist" if asked_by else f"{path} leads nowhere"
        raise FumehoodError(Reason.CONFIG_INVALID, said, remedy="Name an existing file.") from None
    return parse(text, str(path))


def parse(text: str, file: str) -> Config:
    """A configuration's text. Raises FumehoodError with CONFIG_INVALID."""
    from fumehood.profile.problems import Problems
    from fumehood.profile.source import parse as parse_yaml
    from fumehood.profile.validation import validate

    try:
        source = parse_yaml(text, file, reason=Reason.CONFIG_INVALID)
        read = validate(source, document())
        fields = read.model_dump(exclude_unset=True)
        if "results_kept" in fields:
            fields["results_kept_s"] = fields.pop("results_kept")
        for name, value in fields.pop("queue", {}).items():
            fields["queue_wait_s" if name == "wait" else "queue_most"] = value
        if fields.get("gateway") is not None:
            fields["gateway"] = _gateway(read, source)
        if {"egress", "credentials"} & fields.keys():
            fields["outward"] = _outward(read, source)
            fields = {name: value for name, value in fields.items() if name not in ("egress", "credentials")}
        if fields.pop("policy", None) is not None:
            fields["policy"] = _policy(read, source)
        if fields.get("approvals") is not None:
            fields["approvals"] = _approvals(read, source)
        if fields.pop("evidence", None) is not None:
            fields["witnesses"] = _witnesses(read, source)
    except Problems as problems:
        more = len(problems.problems) - 1
        detail = f"{problems}" + (f" (and {more} more)" if more else "")
        raise FumehoodError(Reason.CONFIG_INVALID, detail) from None
    if "runtimes" in fields:
        fields["runtimes"] = tuple(sorted(fields["runtimes"].items()))
    return Config(file=file, **fields)


def _gateway(read: Any, source: Source) -> GatewayConfig:
    """The `gateway:` section as a value. Raises Problems."""
    from fumehood.gateway_document import judge, plain
    from fumehood.profile.problems import Problems

    if wrong := tuple(judge(read.gateway, source)):
        raise Problems(wrong)
    return plain(read.gateway)


def _outward(read: Any, source: Source) -> OutwardConfig:
    """The `egress:` and `credentials:` sections as a value. Raises Problems."""
    from fumehood.outward_document import plain

    return plain(read.egress, read.credentials, source)


def _approvals(read: Any, source: Source) -> ApprovalsConfig:
    """The `approvals:` section as a value. Raises Problems."""
    from fumehood.approvals.document import plain

    return plain(read.approvals, source)


def _witnesses(read: Any, source: Source) -> tuple[tuple[str, str, bool], ...]:
    """The `evidence:` section as a value. Raises Problems."""
    from fumehood.evidence_document import plain

    return plain(read.evidence, source)


def _policy(read: Any, source: Source) -> PolicyConfig:
    """The `policy:` section as a value. Raises Problems."""
    from fumehood.policies.document import plain

    return plain(read.policy, source)


def document() -> type[BaseModel]:
    """The strict model of the file, made when first needed."""
    from fumehood.config_document import ConfigDocument

    return ConfigDocument
