"""What the `approvals:` section of fumehood.yaml says, as frozen values without the webhook's secret. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from fumehood.outward_config import WebhookConfig

WAIT_S = 50.0
EXPIRE_S = 3600.0
AUDIENCE = "fumehood"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalsConfig:
    """`approvers` are (name, `uid` or `key`, value), none for the state folder's owner.

    `wait_s` is how long a request is held open, `expire_s` how long what it asks can be approved. `own`: whether who asked as the
    state folder's owner may approve it at a terminal. `callback` is the path of the HTTP front that takes signed answers, if any.
    """

    approvers: tuple[tuple[str, str, str], ...] = ()
    wait_s: float = WAIT_S
    expire_s: float = EXPIRE_S
    own: bool = True
    audience: str = AUDIENCE
    callback: str | None = None
    webhook: WebhookConfig | None = None
