"""The operator's files made into what a gateway serves: runs with the operator's rights, before the worker gives them up.

The same code runs at the start, in the operator process's child at each reload, and for `fumehood gateway check`, so
that what checks well is what starts. Everything or nothing: the first thing that is wrong anywhere refuses the whole.

The attack (security rule 6), with several servers: a box writes into its own server's workspace what configures another
one. So no file or folder that this configuration is read from may lie in any server's workspace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from fumehood.admission import verify
from fumehood.config import Config
from fumehood.faults import FumehoodError
from fumehood.gateway.listen import oauth_of
from fumehood.gateway.senders import read_senders
from fumehood.gateway.served import HttpFront, Served, ServedSet, Tls
from fumehood.gateway_config import (
    GatewayConfig,
    HttpConfig,
    Listen,
    ServerConfig,
    UpstreamConfig,
    default_hosts,
    exposed,
)
from fumehood.image.store import ImageStore
from fumehood.model import Deny, Profile, Sender, ToolCall
from fumehood.policies.policy import Policy
from fumehood.policies.reading import paths as policy_files
from fumehood.policies.reading import read as read_policy
from fumehood.profile.files import is_path, search_folders, shipped_folder
from fumehood.profile.loader import load
from fumehood.reach import CredentialUse, EgressKind, EgressRule
from fumehood.reasons import Reason
from fumehood.safe_files import inside, read_trusted
from fumehood.state import StateFolder

_PEM_BYTES = 64 * 1024
CREDENTIAL = "upstream"
"""What a remote server's one credential is called in its profile."""


@dataclass(frozen=True, slots=True)
class Fronts:
    """What the command line says of where to serve; it stands in place of the configuration's fronts."""

    http: Listen | None = None
    unix: str | None = None


class Reader:
    """Reads one configuration for one operator."""

    def __init__(self, found: Config, env: Mapping[str, str], uid: int, state: StateFolder) -> None:
        self.found = found
        self.gateway = found.gateway or GatewayConfig()
        self._folders = search_folders(found.profile_folders, env)
        self._uid = uid
        self._state = state

    def read(self, fronts: Fronts) -> ServedSet:
        """The whole set; its directories are the caller's to close. Raises FumehoodError for the first thing wrong."""
        if not self.gateway.servers:
            where = self.found.file or "the configuration"
            remedy = "Name them below `gateway.servers`, or serve one with --profile."
            raise FumehoodError(Reason.CONFIG_INVALID, f"{where} names no servers", remedy=remedy)
        with ExitStack() as held:
            servers: list[Served] = []
            for each in self.gateway.servers:
                server = self.server(each)
                servers.append(server)
                if server.workspace_fd is not None:
                    held.callback(os.close, server.workspace_fd)
            http, unix = self.http(fronts), self.unix(fronts)
            self.keep_apart(servers, unix)
            held.pop_all()
            envelope, users = self.gateway.unix_envelope, self.gateway.unix_users
            return ServedSet(
                servers=tuple(servers), http=http, unix=unix, unix_envelope=envelope, unix_users=users, policy=self.policy(),
            )  # fmt: skip

    def policy(self) -> Policy:
        """What calls are decided by. Raises FumehoodError."""
        return read_policy(self.found.policy, self._uid)

    def server(self, asked: ServerConfig) -> Served:
        """One server. Raises FumehoodError, its detail beginning with the server's place in the file."""
        directory: int | None = None
        try:
            directory = _open_directory(asked.workspace)
            profile = load(asked.profile, self._folders, self._uid, kept=self._state.profiles)
            if asked.upstream is not None:
                profile = remote_profile(profile, asked.upstream)
                self._check_credential(asked.upstream.credential)
            profile = replace(profile, engine=asked.engine or profile.engine or self.found.engine)
            served = Served(
                name=asked.name,
                profile=profile,
                argv=asked.command or profile.command,
                workspace_fd=directory,
                workspace_path=asked.workspace,
            )
            if (deny := self.judge(served)) is not None and deny.reason is not Reason.IMAGE_MISSING:
                raise FumehoodError(deny.reason, deny.detail, remedy=deny.remedy)
        except FumehoodError as error:
            if directory is not None:
                os.close(directory)
            detail = f"gateway.servers.{asked.name}: {error.detail or error.reason.meaning}"
            raise FumehoodError(error.reason, detail, remedy=error.remedy) from error
        return served

    def _check_credential(self, name: str | None) -> None:
        known = {each.name for each in self.found.outward.credentials}
        if name is not None and name not in known:
            detail = f"upstream.credential: there is no {name!r} below `credentials`"
            raise FumehoodError(Reason.CONFIG_INVALID, detail, remedy="Add it, or name another.")

    def judge(self, served: Served) -> Deny | None:
        """Why every call of this server would be refused: by the code that judges calls, and before any is made."""
        if not served.argv and served.profile.upstream is None and served.profile.image:
            detail = f"the profile {served.profile.name} has no `command`"
            remedy = "Name the server's `command` beside its profile."
            return Deny(reason=Reason.CONFIG_INVALID, rule="gateway.servers", detail=detail, remedy=remedy)
        known = {each.name for each in self.found.outward.credentials}
        if missing := sorted({use.source for use in served.profile.credentials} - known):
            detail = f"the profile {served.profile.name} uses the credential {missing[0]}, which fumehood.yaml does not have"
            remedy = "Describe it below `credentials`."
            return Deny(reason=Reason.CONFIG_INVALID, rule="gateway.servers", detail=detail, remedy=remedy)
        call = ToolCall(
            task="", tool=None, arguments={}, sender=Sender(uid=self._uid, name=""), profile=served.profile,
            workspace_fd=served.workspace_fd, workspace_path=served.workspace_path, front_door="gateway",
        )  # fmt: skip
        judged = verify.check(call, ImageStore(self._state.images))
        return judged if isinstance(judged, Deny) else None

    def http(self, fronts: Fronts) -> HttpFront | None:
        """The HTTP front, if one is asked for, with its secrets read. Raises FumehoodError."""
        has = self.listens(fronts)
        if has is None or has.listen is None:
            return None
        return HttpFront(
            listen=has.listen,
            senders=read_senders(has.tokens_file, self._uid),
            tls=self._tls(has),
            allowed_hosts=has.allowed_hosts or default_hosts(has.listen),
            allowed_origins=has.allowed_origins,
            envelope=has.envelope,
            oauth=oauth_of(has.oauth, self._uid),
        )

    def listens(self, fronts: Fronts) -> HttpConfig | None:
        """What is configured of HTTP, with the address that is asked for; None when none is. Raises FumehoodError."""
        has = self.gateway.http
        listen = fronts.http or (None if fronts.unix is not None or has is None else has.listen)
        if listen is None:
            return None
        if has is None:
            detail = "HTTP is served only to senders with a token, and `gateway.http.tokens_file` names none"
            raise FumehoodError(Reason.CONFIG_INVALID, detail, remedy="Name a tokens file in fumehood.yaml, or configure `oauth`.")
        if (wrong := exposed(listen, tls=has.tls is not None, allowed_hosts=bool(has.allowed_hosts))) is not None:
            raise FumehoodError(Reason.BAD_REQUEST, f"--http {listen}: {wrong}")
        return replace(has, listen=listen)

    def unix(self, fronts: Fronts) -> str | None:
        """The path of the unix socket, if one is asked for."""
        return fronts.unix or (None if fronts.http is not None else self.gateway.unix)

    def keep_apart(self, servers: Sequence[Served], unix: str | None) -> None:
        """Refuse a configuration of which a box could have written a part. Raises FumehoodError(CONFIG_UNSAFE)."""
        for server in servers:
            if server.workspace_fd is None or server.workspace_path is None:
                continue
            workspaces = (
                os.path.normpath(server.workspace_path),
                str(Path(f"/proc/self/fd/{server.workspace_fd}").readlink()),
            )
            for path in self._read_from(unix):
                # As named and as it leads: a link outside may point in, and a link inside may point out.
                if any(inside(way, folder) for way in (path, os.path.realpath(path)) for folder in workspaces):
                    raise FumehoodError(
                        Reason.CONFIG_UNSAFE,
                        f"{path} lies inside the workspace of the server `{server.name}`, where a box could have written it",
                        remedy="Keep configuration, profiles and secrets outside the directories that boxes write to.",
                    )

    def _read_from(self, unix: str | None) -> Iterator[str]:
        """Every file and folder that decides something here."""
        if self.found.file is not None:
            yield self.found.file
        yield from self.found.outward.files
        yield from policy_files(self.found.policy, self._uid)
        yield from (str(folder) for folder in self._folders if folder != shipped_folder())
        yield from (each.profile for each in self.gateway.servers if is_path(each.profile))
        if (http := self.gateway.http) is not None:
            if http.tokens_file is not None:
                yield http.tokens_file
            if http.oauth is not None:
                yield from http.oauth.files
            if http.tls is not None:
                yield from (http.tls.certificate, http.tls.key)
        if unix is not None:
            yield unix

    def _tls(self, has: HttpConfig) -> Tls | None:
        if has.tls is None:
            return None
        texts = []
        for path, private in ((has.tls.certificate, False), (has.tls.key, True)):
            try:
                texts.append(read_trusted(path, self._uid, limit_bytes=_PEM_BYTES, private=private))
            except FileNotFoundError:
                raise FumehoodError(Reason.CONFIG_INVALID, f"gateway.http.tls: there is no file {path}") from None
        tls = Tls(*texts)
        import ssl

        try:
            # Tried where it can still be refused: the worker would have to do without.
            tls.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        except (OSError, ValueError) as error:
            detail = (
                f"gateway.http.tls: {has.tls.certificate} and {has.tls.key} are no certificate and its key: {error}"
            )
            remedy = "Give PEM files, the key without a passphrase."
            raise FumehoodError(Reason.CONFIG_INVALID, detail, remedy=remedy) from error
        return tls


def remote_profile(profile: Profile, upstream: UpstreamConfig) -> Profile:
    """The profile of one remote server: what its own allows, at the one place, with the one credential. Raises FumehoodError."""
    from fumehood.profile.resolve import profile_digest

    if profile.image:
        detail = f"the profile {profile.name} has an image, and a remote server runs elsewhere"
        raise FumehoodError(Reason.CONFIG_INVALID, detail, remedy="Name a profile with `remote: true`.")
    url = urlsplit(upstream.url)
    name, used = url.hostname or "", upstream.credential
    rule = EgressRule(
        kind=EgressKind.HTTP, name=name, ports=(url.port or 443,), addresses=upstream.addresses,
        credential=None if used is None else CREDENTIAL,
    )  # fmt: skip
    uses: tuple[CredentialUse, ...] = ()
    if used is not None:
        scope = {} if upstream.resource is None else {"resource": upstream.resource}
        uses = (CredentialUse(name=CREDENTIAL, source=used, header="authorization", scope=scope),)
    made = replace(profile, upstream=upstream.url, network=replace(profile.network, rules=(rule,)), credentials=uses)
    return replace(made, digest=profile_digest(made))


def _open_directory(path: str | None) -> int | None:
    """A descriptor of the directory, opened with the caller's own rights (security rule 7)."""
    if path is None:
        return None
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FumehoodError(Reason.WORKSPACE_UNREADABLE, f"{path}: {error.strerror}") from error
