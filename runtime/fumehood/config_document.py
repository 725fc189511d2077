"""The strict model of `fumehood.yaml`, apart from `config` so that commands without a file import no pydantic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fumehood.approvals.document import ApprovalsSection
from fumehood.config import MAX_BOXES
from fumehood.evidence_document import EvidenceSection
from fumehood.gateway_document import GatewayDocument
from fumehood.outward_document import MAX_CREDENTIALS, CredentialSection, EgressSection
from fumehood.policies.document import PolicySection
from fumehood.profile.fields import AbsolutePath, Name, Retention, Strict, duration, expected


def _unix_host(value: object) -> str:
    # An engine behind TCP runs on a host whose processes we cannot see, so nothing it does could be read back.
    if not isinstance(value, str) or not value.startswith("unix:///"):
        raise expected(f"expected unix:///path of a Docker engine on this host, found {value!r}")
    return value


class QueueSection(Strict):
    """Calls that wait for a box."""

    wait: Annotated[float, *duration(0.0)] = Field(default=30.0, description="How long at most; then a call is refused as busy.")
    most: int = Field(default=1024, ge=0, le=100_000, description="How many at once; further ones are refused as busy.")


class ConfigDocument(Strict):
    """What the operator decides for the whole host."""

    state: AbsolutePath | None = Field(default=None, description="The state folder; FUMEHOOD_STATE wins.")
    engine: Literal["docker", "oci"] | None = Field(default=None, description="The engine of profiles that name none.")
    boxes: int = Field(default=16, ge=1, le=MAX_BOXES, description="Boxes that may live at once.")
    queue: QueueSection = Field(default=QueueSection(), description="What happens to calls when no box is free.")
    workspace_roots: tuple[AbsolutePath, ...] = Field(
        default=(),
        strict=False,
        description="Where workspaces of callers other than the operator may lie. Default: nowhere.",
    )
    mount_roots: tuple[AbsolutePath, ...] = Field(
        default=(), strict=False, description="Where the sources of profiles' mounts may lie. Default: nowhere."
    )
    profile_folders: tuple[AbsolutePath, ...] = Field(
        default=(),
        strict=False,
        description="Searched for profiles before the user's, the system's and the shipped ones.",
    )
    docker_host: Annotated[str, BeforeValidator(_unix_host)] | None = Field(
        default=None, description="The Docker engine's socket; default: DOCKER_HOST, or Docker's own default."
    )
    runtimes: dict[Literal["runc", "crun", "runsc"], AbsolutePath] = Field(
        default_factory=dict, description="Absolute paths of runtimes to use instead of those on PATH."
    )
    accept_risk: tuple[Name, ...] = Field(
        default=(),
        strict=False,
        description="Ids of known holes of this host's runtimes, as `doctor` names them, that you accept.",
    )
    results_kept: Retention = Field(default=24 * 3600.0, description="How long results are kept for clients to fetch.")
    egress: EgressSection | None = Field(default=None, description="How gates reach what profiles allow.")
    credentials: dict[Name, CredentialSection] = Field(
        default_factory=dict, max_length=MAX_CREDENTIALS, description="Credentials that profiles may use, by name."
    )
    approvals: ApprovalsSection | None = Field(default=None, description="Who may approve what policy asks a person about.")
    evidence: EvidenceSection | None = Field(default=None, description="Who outside keeps signed checkpoints of the ledger.")
    policy: PolicySection | None = Field(default=None, description="Who may call what, in Cedar.")
    gateway: GatewayDocument | None = Field(
        default=None, description="What `fumehood gateway` serves when it is given no --profile."
    )
