"""The strict model of the `approvals:` section of fumehood.yaml: who may approve a call, and how they are told and answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, WithJsonSchema

from fumehood.approvals.config import AUDIENCE, EXPIRE_S, WAIT_S, ApprovalsConfig
from fumehood.outward_config import WebhookConfig
from fumehood.outward_document import source_of, wrong_source
from fumehood.profile.fields import Name, Strict, checked, duration, expected, matching
from fumehood.profile.problems import Problem, Problems
from fumehood.profile.source import Source
from fumehood.thumbprint import bytes_of

MAX_APPROVERS = 32
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def _url(value: object) -> str:
    try:
        parts = urlsplit(value) if isinstance(value, str) else urlsplit("")
        host, safe = parts.hostname, parts.scheme == "https"
        if host and (safe or (parts.scheme == "http" and host in _LOOPBACK)) and parts.username is None and not parts.fragment:
            return str(value)
    except ValueError:
        pass
    # Never repeated: a URL of a chat's webhook is a secret in itself.
    raise expected("expected https://HOST[:PORT]/PATH (http:// on loopback alone), without a name and password")


class ApproverSection(Strict):
    """One approver: the owner of the state folder, or whoever has a key."""

    uid: int | None = Field(default=None, ge=0, description="A user of this host, by the kernel's word.")
    key: Annotated[str, checked(bytes_of)] | None = Field(
        default=None, description="The `x` of an Ed25519 public key (a JWK), whose signed answers count."
    )


class WebhookSection(Strict):
    """Where approvers are told."""

    url: Annotated[str, BeforeValidator(_url), WithJsonSchema({"type": "string", "pattern": "^https?://"})] = Field(
        description="Takes each call that waits by POST, signed as Standard Webhooks has it."
    )
    # Any, for an error of the model's would repeat what may be the secret itself.
    secret: Annotated[Any, WithJsonSchema({"type": "object"})] = Field(
        description="What signs it, as {file: PATH}, {env: NAME} or {command: [ARGV]}."
    )


class ApprovalsSection(Strict):
    """Who may approve a call that policy asks a person about."""

    approvers: dict[Name, ApproverSection] = Field(
        default_factory=dict, max_length=MAX_APPROVERS, description="By name. Default: the owner of the state folder."
    )
    own: Literal["terminal", "never"] = Field(
        default="terminal", description="Whether the owner may approve at a terminal what was asked for as the owner."
    )
    wait: Annotated[float, *duration(0, 3600)] = Field(default=WAIT_S, description="How long a request is held open for an approval.")
    expire: Annotated[float, *duration(10, 7 * 86_400)] = Field(default=EXPIRE_S, description="How long it can be approved.")
    audience: Annotated[str, *matching(r"[\x21-\x7e]{1,256}", "a name or URL without spaces")] = Field(
        default=AUDIENCE, description="What signed answers must be made out to."
    )
    callback: Annotated[str, *matching(r"(?!/mcp$)/[A-Za-z0-9._~/-]{1,128}", "a path such as /approvals/callback")] | None = Field(
        default=None, description="The path of the gateway's HTTP front that takes signed answers. Default: none."
    )
    webhook: WebhookSection | None = Field(default=None, description="Where approvers are told of what waits.")


def plain(section: ApprovalsSection, source: Source) -> ApprovalsConfig:
    """The section as the rest of fumehood uses it. Raises Problems."""
    problems: list[Problem] = []
    found: list[tuple[str, str, str]] = []
    for name, each in section.approvers.items():
        said = [(kind, str(value)) for kind, value in (("uid", each.uid), ("key", each.key)) if value is not None]
        if len(said) != 1:
            problems.append(source.problem(("approvals", "approvers", name), "expected exactly one of uid, key"))
        elif any(said[0] == other[1:] for other in found):
            problems.append(source.problem(("approvals", "approvers", name), "the same as another approver, who would count twice"))
        else:
            found.append((name, *said[0]))
    if section.webhook is not None and (why := wrong_source(section.webhook.secret)):
        problems.append(source.problem(("approvals", "webhook", "secret"), why))
    if problems:
        raise Problems(problems)
    hook = section.webhook
    return ApprovalsConfig(
        approvers=tuple(found), wait_s=section.wait, expire_s=section.expire, own=section.own == "terminal", audience=section.audience,
        callback=section.callback, webhook=None if hook is None else WebhookConfig(url=hook.url, secret=source_of(hook.secret)),
    )  # fmt: skip
