"""AWS credentials of a role for one call, narrowed by a session policy.

STS gives them at least a quarter of an hour and takes them back from nobody, so the limits are the session policy, which can only
take away from what the role may do, and the gate, which alone holds them. The record says that they live on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio
from pydantic import Field

from fumehood.credentials.asking_http import checked_url
from fumehood.credentials.kinds import extra_missing
from fumehood.credentials.options import Options, Text, Texts, parsed, required
from fumehood.faults import FumehoodError
from fumehood.ports import Issued, LeaseRequest, Revoked
from fumehood.reach import Secret, SecretForm
from fumehood.reasons import Reason

LEAST_S = 900.0
MOST_S = 3600.0
_TIMEOUT_S = 8.0


class Allow(Options):
    """The most that a session policy may allow. Both may hold `*`: as AWS reads it in the policy, as ours in a comparison."""

    actions: Texts = Field(min_length=1)
    resources: Texts = Field(min_length=1)


class AwsOptions(Options):
    """Which role, asked for where."""

    role_arn: str = Field(pattern=r"^arn:[a-z-]+:iam::\d{12}:role/[A-Za-z0-9+=,.@_/-]+$")
    region: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    endpoint: Text | None = None
    external_id: Text | None = None
    allow: Allow


OPTIONS = AwsOptions
SECRETS = ("key_id", "key", "session")
REQUIRED = ("key_id", "key")


class AwsSts:
    """Assumes one role."""

    kind = "aws-sts"
    revocable = False
    least_s = LEAST_S

    def __init__(self, options: AwsOptions, secrets: Mapping[str, str]) -> None:
        self._options = options
        self._secrets = dict(secrets)
        self._client: Any = None
        self.maximum: Mapping[str, Any] = {"actions": options.allow.actions, "resources": options.allow.resources}

    async def handle(self, request: LeaseRequest) -> Mapping[str, Any]:
        """By what CloudTrail knows the session: nothing revokes it."""
        return {"role": self._options.role_arn, "session": f"fumehood-{request.lease}"}

    async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
        """Credentials for the scope's actions and resources, or for all that is allowed."""
        actions, resources = (_list(request.scope.get(key, self.maximum[key])) for key in ("actions", "resources"))
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": resources}]}
        seconds = int(min(MOST_S, max(LEAST_S, request.seconds)))
        asked = {
            "RoleArn": self._options.role_arn, "RoleSessionName": handle["session"], "DurationSeconds": seconds,
            "Policy": json.dumps(policy, separators=(",", ":")),
        }  # fmt: skip
        if self._options.external_id is not None:
            asked["ExternalId"] = self._options.external_id
        # botocore is synchronous: a thread that is given up ends by its own timeouts.
        found = await anyio.to_thread.run_sync(partial(self._assume, asked), abandon_on_cancel=True)
        parts = {"key_id": found["AccessKeyId"], "key": found["SecretAccessKey"], "session": found["SessionToken"]}
        ends = found.get("Expiration")
        return Issued(
            secret=Secret(form=SecretForm.AWS, parts=parts),
            expires_at_s=ends.timestamp() if ends is not None else time.time() + seconds,
            facts={"role": self._options.role_arn, "actions": actions, "resources": resources},
        )

    async def revoke(self, handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:
        """Say that it cannot be done."""
        del handle, sealed
        return Revoked(gone=False, asked="nobody", answer="STS credentials are not revocable: they end by themselves")

    def _assume(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._client is None:
                self._client = self._connect()
            found: Mapping[str, Any] = self._client.assume_role(**asked)["Credentials"]
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "?"))[:64]
            raise FumehoodError(Reason.LEASE_FAILED, f"sts:AssumeRole: {code}") from None
        except BotoCoreError as error:
            raise FumehoodError(Reason.LEASE_FAILED, f"sts:AssumeRole: {type(error).__name__}") from None
        return found

    def _connect(self) -> Any:
        import botocore.config
        import botocore.session

        # Not boto3's: nothing of the environment, of files, or of a metadata service decides here.
        session = botocore.session.Session()
        session.set_credentials(self._secrets["key_id"], self._secrets["key"], self._secrets.get("session"))
        return session.create_client(
            "sts", region_name=self._options.region, endpoint_url=self._options.endpoint,
            config=botocore.config.Config(
                connect_timeout=_TIMEOUT_S / 2, read_timeout=_TIMEOUT_S, retries={"total_max_attempts": 2}, proxies={},
            ),
        )  # fmt: skip


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def make(name: str, options: Mapping[str, Any], secrets: Mapping[str, str]) -> AwsSts:
    """The provider. Raises FumehoodError."""
    import importlib.util

    if importlib.util.find_spec("botocore") is None:
        raise extra_missing("aws-sts", "aws")
    found = parsed(name, AwsOptions, options)
    required(name, secrets, REQUIRED)
    if found.endpoint is not None:
        checked_url(name, "endpoint", found.endpoint)
    return AwsSts(found, secrets)
