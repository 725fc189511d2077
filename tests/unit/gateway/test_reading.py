"""The operator's files made into what is served: everything or nothing, and nothing that a box could have written."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fumehood import config
from fumehood.faults import FumehoodError
from fumehood.gateway.reading import Fronts, Reader
from fumehood.gateway.senders import digest_of
from fumehood.gateway.served import ServedSet
from fumehood.gateway_config import listen_of
from fumehood.reasons import Reason
from fumehood.state import StateFolder

UID = os.getuid()
PROFILE = "image: mcp-reference\ncommand: [serve]\nfilesystem: {workspace: %s}\ntools: {allow: [x]}\n"


class Files:
    """An operator's folder, and workspaces beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("etc", "etc/profiles", "state", "a", "b", "home"):
            (root / name).mkdir(mode=0o755)
        for mode in ("ro", "rw", "none"):
            self.put(f"etc/profiles/{mode}.yaml", PROFILE % mode)
        self.put("etc/tokens", f"alice:{digest_of('t')}\n", 0o600)

    def put(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.root / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def reader(self, gateway: str, file: str = "etc/fumehood.yaml", more: str = "") -> Reader:
        text = f"{more or f'profile_folders: [{self.root}/etc/profiles]'}\ngateway: {gateway.replace('ROOT', str(self.root))}\n"
        found = config.load(str(self.put(file, text)), {}, UID)
        return Reader(found, {"HOME": str(self.root / "home")}, UID, StateFolder(self.root / "state"))

    def read(self, gateway: str, fronts: Fronts | None = None, **more: str) -> ServedSet:
        before = len(os.listdir("/proc/self/fd"))
        try:
            return self.reader(gateway, **more).read(fronts or Fronts())
        except FumehoodError:
            assert len(os.listdir("/proc/self/fd")) == before, "a refused configuration left descriptors open"
            raise

    def refused(self, gateway: str, fronts: Fronts | None = None, **more: str) -> FumehoodError:
        with pytest.raises(FumehoodError) as caught:
            self.read(gateway, fronts, **more)
        return caught.value


@pytest.fixture
def files(tmp_path: Path) -> Files:
    tmp_path.chmod(0o755)
    return Files(tmp_path)


TWO = "{servers: {a: {profile: rw, workspace: ROOT/a}, b: {profile: ro, workspace: ROOT/b, engine: oci, command: [c, d]}}}"


def test_servers_come_with_profile_engine_command_and_directory(files: Files) -> None:
    served = files.read(TWO, more=f"profile_folders: [{files.root}/etc/profiles]\nengine: docker")
    first, second = served.servers
    assert (first.name, first.profile.name, first.profile.engine, first.argv) == ("a", "rw", "docker", ("serve",))
    assert (second.name, second.profile.name, second.profile.engine, second.argv) == ("b", "ro", "oci", ("c", "d"))
    for each, name in ((first, "a"), (second, "b")):
        assert os.readlink(f"/proc/self/fd/{each.workspace_fd}") == each.workspace_path == str(files.root / name)
    served.close()


def test_without_servers_there_is_nothing_to_serve(files: Files) -> None:
    assert "names no servers" in files.refused("{}").detail


@pytest.mark.parametrize(
    ("server", "reason", "said"),
    [
        (
            "{profile: rww}",
            Reason.PROFILE_UNKNOWN,
            "gateway.servers.x: there is no profile 'rww'; nearest valid name: rw",
        ),
        ("{profile: ROOT/none.yaml}", Reason.PROFILE_UNKNOWN, "gateway.servers.x: there is no file"),
        ("{profile: rw, workspace: ROOT/zz}", Reason.WORKSPACE_UNREADABLE, "zz: No such file or directory"),
        ("{profile: rw, workspace: ROOT/etc/tokens}", Reason.WORKSPACE_UNREADABLE, "Not a directory"),
        ("{profile: ro}", Reason.WORKSPACE_MISSING, "gateway.servers.x: "),
        ("{profile: none, workspace: ROOT/a}", Reason.WORKSPACE_NOT_ALLOWED, "gives its tools no workspace"),
        ("{profile: quiet}", Reason.CONFIG_INVALID, "gateway.servers.x: the profile quiet has no `command`"),
    ],
)
def test_one_bad_server_refuses_the_whole_by_its_name(files: Files, server: str, reason: Reason, said: str) -> None:
    files.put("etc/profiles/quiet.yaml", "image: mcp-reference\n")
    error = files.refused(f"{{servers: {{good: {{profile: rw, workspace: ROOT/a}}, x: {server}}}}}")
    assert error.reason is reason
    assert said in error.detail


def test_a_credential_that_the_configuration_does_not_have_refuses_the_whole(files: Files) -> None:
    network = "network: {egress: [{http: a.example, credential: api}]}\n"
    files.put("etc/profiles/using.yaml", PROFILE % "none" + network)
    gateway, folders = "{servers: {x: {profile: using}}}", f"profile_folders: [{files.root}/etc/profiles]\n"
    error = files.refused(gateway)
    assert error.reason is Reason.CONFIG_INVALID
    assert "gateway.servers.x: the profile using uses the credential api, which fumehood.yaml does not have" in error.detail
    files.read(gateway, more=folders + "credentials: {api: {provider: static, token: {file: /etc/none}}}").close()


@pytest.mark.parametrize(
    "section",
    [
        "credentials: {api: {provider: static, token: {file: ROOT/a/token}}}",
        "credentials: {api: {provider: static, token: {command: [ROOT/a/print]}}}",
        "egress: {authorities: ROOT/a/ca.pem}",
    ],
)
def test_what_decides_of_credentials_is_not_in_a_servers_workspace(files: Files, section: str) -> None:
    folders = f"profile_folders: [{files.root}/etc/profiles]\n"
    error = files.refused("{servers: {%s}}" % WRITES_A, more=folders + section.replace("ROOT", str(files.root)))  # noqa: UP031
    assert error.reason is Reason.CONFIG_UNSAFE
    assert "lies inside the workspace of the server `a`" in error.detail


WRITES_A = "a: {profile: rw, workspace: ROOT/a}"


def test_a_configuration_planted_in_a_workspace_of_one_server_configures_nothing(files: Files) -> None:
    error = files.refused(TWO, file="a/fumehood.yaml")
    assert error.reason is Reason.CONFIG_UNSAFE
    assert "lies inside the workspace of the server `a`" in error.detail


@pytest.mark.parametrize(
    "gateway",
    [
        "{servers: {%s, b: {profile: ROOT/a/ro.yaml, workspace: ROOT/b}}}",
        "{servers: {%s, b: {profile: ROOT/link/ro.yaml, workspace: ROOT/b}}}",
        "{servers: {%s}, http: {listen: '127.0.0.1:80', tokens_file: ROOT/a/tokens}}",
        "{servers: {%s}, http: {listen: '127.0.0.1:80', tokens_file: ROOT/etc/leads-in}}",
        "{servers: {%s}, http: {tokens_file: ROOT/a/tokens}}",
        "{servers: {%s}, unix: {path: ROOT/a/socket}}",
        ("{servers: {%s}, http: {oauth: {resource: 'https://a/mcp', binding: dpop, issuers: [{issuer: 'https://i',"
        " jwks: {file: ROOT/a/jwks}, algorithms: [ES256], senders: {a: {sub: a}}}]}}}"),
    ],
    ids=["profile", "profile-by-link", "tokens", "tokens-by-link", "tokens-for-later", "socket", "issuers-keys"],
)
def test_what_one_servers_box_can_write_decides_nothing_for_another(files: Files, gateway: str) -> None:
    files.put("a/ro.yaml", PROFILE % "ro")
    files.put("a/tokens", f"mallory:{digest_of('t')}\n", 0o600)
    (files.root / "link").symlink_to(files.root / "a")
    (files.root / "etc/leads-in").symlink_to(files.root / "a/tokens")
    error = files.refused(gateway % WRITES_A)
    assert error.reason is Reason.CONFIG_UNSAFE
    assert "lies inside the workspace of the server `a`" in error.detail


@pytest.mark.parametrize("folder", ["a/profiles", "a"])
def test_profiles_are_not_looked_up_where_a_box_can_write_them(files: Files, folder: str) -> None:
    (files.root / "a/profiles").mkdir()
    files.put(f"{folder}/rw.yaml", PROFILE % "rw")
    error = files.refused(f"{{servers: {{{WRITES_A}}}}}", more=f"profile_folders: [{files.root}/{folder}]")
    assert error.reason is Reason.CONFIG_UNSAFE


def test_the_users_own_folder_of_profiles_is_not_in_a_workspace_either(files: Files) -> None:
    error = files.refused("{servers: {a: {profile: rw, workspace: ROOT/home}}}")
    assert error.reason is Reason.CONFIG_UNSAFE
    assert ".config/fumehood/profiles lies inside" in error.detail


def test_a_workspace_named_by_a_link_is_judged_where_it_leads(files: Files) -> None:
    (files.root / "link").symlink_to(files.root)
    error = files.refused("{servers: {a: {profile: rw, workspace: ROOT/link}}}")
    assert error.reason is Reason.CONFIG_UNSAFE


HTTP = "{servers: {a: {profile: rw}}, http: {listen: '127.0.0.1:80', tokens_file: ROOT/etc/tokens}, unix: {path: /s}}"


def test_the_command_line_names_the_one_front_in_place_of_the_configurations(files: Files) -> None:
    both = files.read(HTTP)
    assert both.http is not None
    assert (str(both.http.listen), both.unix) == ("127.0.0.1:80", "/s")
    assert both.http.allowed_hosts == ("localhost", "127.0.0.1", "[::1]")
    only_http = files.read(HTTP, Fronts(http=listen_of("[::1]:81")))
    assert only_http.http is not None
    assert (str(only_http.http.listen), only_http.unix) == ("[::1]:81", None)
    only_unix = files.read(HTTP, Fronts(unix="/t"))
    assert (only_unix.http, only_unix.unix) == (None, "/t")


def test_http_without_senders_is_refused(files: Files) -> None:
    error = files.refused("{servers: {a: {profile: rw}}}", Fronts(http=listen_of("127.0.0.1:80")))
    assert "gateway.http.tokens_file" in error.detail
    files.put("etc/tokens", "", 0o600)
    assert "at least one line" in files.refused(HTTP).detail


def test_an_option_does_not_open_what_the_file_may_not(files: Files) -> None:
    error = files.refused(HTTP, Fronts(http=listen_of("0.0.0.0:80")))
    assert error.reason is Reason.BAD_REQUEST
    assert "in clear" in error.detail


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_tokens_file_that_others_can_read_or_write_is_refused(files: Files, mode: int) -> None:
    (files.root / "etc/tokens").chmod(mode)
    assert files.refused(HTTP).reason is Reason.CONFIG_UNSAFE


@pytest.mark.skipif(UID != 0, reason="needs root: files of two users")
@pytest.mark.parametrize("name", ["etc/tokens", "etc"])
def test_a_tokens_file_of_another_users_is_refused(files: Files, name: str) -> None:
    os.chown(files.root / name, 12345, 12345)
    assert files.refused(HTTP).reason is Reason.CONFIG_UNSAFE


def test_a_key_that_others_can_read_is_refused(files: Files) -> None:
    gateway = HTTP.replace("tokens_file", "tls: {certificate: ROOT/etc/c.pem, key: ROOT/etc/k.pem}, tokens_file")
    assert "there is no file" in files.refused(gateway).detail
    certificate, key = make_certificate(files.root / "etc")
    key.chmod(0o644)
    error = files.refused(gateway)
    assert error.reason is Reason.CONFIG_UNSAFE
    assert "PRIVATE" not in str(error)
    key.chmod(0o600)
    served = files.read(gateway)
    assert served.http is not None
    assert served.http.tls is not None
    assert (served.http.tls.certificate, served.http.tls.key) == (certificate.read_text(), key.read_text())


def test_what_is_no_certificate_and_its_key_is_refused_where_it_is_read(files: Files) -> None:
    gateway = HTTP.replace("tokens_file", "tls: {certificate: ROOT/etc/c.pem, key: ROOT/etc/k.pem}, tokens_file")
    make_certificate(files.root / "etc")
    own = (files.root / "etc/k.pem").read_text()
    make_certificate(files.root / "home")
    for other in ((files.root / "home/k.pem").read_text(), "SECRET", ""):
        files.put("etc/k.pem", other, 0o600)
        error = files.refused(gateway)
        assert error.reason is Reason.CONFIG_INVALID
        assert "are no certificate and its key" in error.detail
        assert "SECRET" not in str(error)
    files.put("etc/k.pem", own, 0o600)
    files.read(gateway)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate, and its key."""
    certificate, key = folder / "c.pem", folder / "k.pem"
    words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-days",
        "2",
    ]
    subprocess.run(["openssl", *words, "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True)
    return certificate, key
