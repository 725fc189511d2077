"""`egress:` and `credentials:` of fumehood.yaml: what they may say, how secrets are read, and that nothing shows one."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fumehood import app, config, launch, outward_secrets, wire
from fumehood.credentials import kinds
from fumehood.faults import FumehoodError
from fumehood.launch import Crew, Processes
from fumehood.outward_config import CredentialConfig, Given, OutwardConfig, SecretSource
from fumehood.outward_document import resolver_of
from fumehood.reasons import Reason
from fumehood.settings import Settings
from fumehood.state import StateFolder

UID = os.getuid()
CANARY = "canary-7f3a9c51"
AUTHORITY = Path("/etc/ssl/certs/ca-certificates.crt")


def some_settings(folder: Path) -> Settings:
    return Settings(
        state=StateFolder(folder), runtime_id="r", boot_id="b", caller_uid=UID, caller_name="me", worker_uid=1,
        worker_gid=1, ledger_uid=2, ledger_gid=2, ids_start=0, ids_count=0, workspace_roots=None, mount_roots=(),
        engine=None, boxes=1, docker_host="",
    )  # fmt: skip


def refused(text: str) -> FumehoodError:
    with pytest.raises(FumehoodError) as caught:
        config.parse(text, "f")
    return caught.value


def test_every_field_arrives() -> None:
    text = """
egress:
  resolvers: [10.0.0.53, "10.0.0.54:5353", "fd00::53", "[fd00::54]:5353"]
  authorities: /etc/fumehood/authorities.pem
  proxy: http://proxy.internal:3128/
  memory: 128MiB
credentials:
  github:
    provider: github-app
    app_id: 1
    installation_id: 2
    private_key: {file: /etc/fumehood/github.pem}
    allow: {repositories: ["acme/*"], permissions: {contents: read}}
  api: {provider: static, token: {command: [/usr/bin/pass, show, api]}}
  other: {provider: static, form: password, user: {env: OTHER_USER}, password: {env: OTHER_PASSWORD}}
"""
    found = config.parse(text, "f").outward
    assert found == OutwardConfig(
        resolvers=("10.0.0.53:53", "10.0.0.54:5353", "[fd00::53]:53", "[fd00::54]:5353"),
        authorities="/etc/fumehood/authorities.pem",
        proxy="http://proxy.internal:3128",
        memory_bytes=128 * 2**20,
        credentials=(
            CredentialConfig(
                name="github",
                provider="github-app",
                options={
                    "app_id": 1,
                    "installation_id": 2,
                    "allow": {"repositories": ["acme/*"], "permissions": {"contents": "read"}},
                },
                secrets=(("private_key", SecretSource("file", ("/etc/fumehood/github.pem",))),),
            ),
            CredentialConfig(
                name="api",
                provider="static",
                secrets=(("token", SecretSource("command", ("/usr/bin/pass", "show", "api"))),),
            ),
            CredentialConfig(
                name="other",
                provider="static",
                options={"form": "password"},
                secrets=(
                    ("password", SecretSource("env", ("OTHER_PASSWORD",))),
                    ("user", SecretSource("env", ("OTHER_USER",))),
                ),
            ),
        ),
    )
    assert found.files == ("/etc/fumehood/authorities.pem", "/etc/fumehood/github.pem", "/usr/bin/pass")
    assert config.parse("boxes: 1", "f").outward == OutwardConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("egress: {resolver: x}", "f:1:10: egress.resolver: expected a known field; nearest valid name: resolvers"),
        ("egress: {resolvers: [dns.example]}", "egress.resolvers[0]: expected a DNS server's address and port"),
        ("egress: {resolvers: ['10.0.0.1:0']}", "expected a DNS server's address and port"),
        ("egress: {resolvers: ['10.0.0.1:99999']}", "expected a DNS server's address and port"),
        ("egress: {resolvers: ['[fd00::1]x']}", "expected a DNS server's address and port"),
        ("egress: {resolvers: ['fe80::1%eth0']}", "expected a DNS server's address and port"),
        ("egress: {resolvers: [53]}", "expected a DNS server's address and port"),
        ("egress: {authorities: ca.pem}", "egress.authorities: expected an absolute path"),
        ("egress: {proxy: 'https://p:1'}", "egress.proxy: expected http://HOST:PORT"),
        ("egress: {proxy: 'http://p'}", "egress.proxy: expected http://HOST:PORT"),
        ("egress: {proxy: 'http://p:99999'}", "egress.proxy: expected http://HOST:PORT"),
        ("egress: {proxy: 'http://u:p@h:1'}", "without a name and password: this file is no place for a secret"),
        ("egress: {memory: 1MiB}", "egress.memory: expected between 16MiB and 16TiB"),
        ("credentials: {A: {provider: static}}", "credentials.A: expected a name"),
        ("credentials: {a: x}", "credentials.a: expected a map"),
        ("credentials: {a: {}}", "f:1:18: credentials.a: expected `provider`, one of aws-sts, github-app"),
        ("credentials: {a: {provider: statc}}", "f:1:29: credentials.a.provider: there is no kind of credential 'statc'"),
        ("credentials: {a: {provider: static, form: x}}", "f:1:43: credentials.a.form: expected token, password, aws or ssh, found 'x'"),
        ("credentials: {a: {provider: static, frm: x}}", "f:1:37: credentials.a.frm: expected a known field; nearest valid name: form"),
        ("credentials: {a: {provider: vault}}", "credentials.a: expected `token`, as {file: PATH}"),
        ("credentials: {a: {provider: github-app, private_key: {file: /k}, allow: {}}}", "credentials.a.app_id: expected this field"),
        ("credentials: {a: {provider: static, token: {}}}", "credentials.a.token: expected exactly one of file, env, command"),
        ("credentials: {a: {provider: static, token: {file: /a, env: B}}}", "expected exactly one of file, env, command"),
        ("credentials: {a: {provider: static, token: {value: x}}}", "expected exactly one of file, env, command"),
        ("credentials: {a: {provider: static, token: {file: a}}}", "expected an absolute path without `..`, found 'a'"),
        ("credentials: {a: {provider: static, token: {file: /a/../b}}}", "expected an absolute path"),
        ("credentials: {a: {provider: static, token: {file: [/a]}}}", "expected a path"),
        ("credentials: {a: {provider: static, token: {env: A-B}}}", "expected a variable's name"),
        ("credentials: {a: {provider: static, token: {command: /bin/x}}}", "expected a list of strings"),
        ("credentials: {a: {provider: static, token: {command: []}}}", "expected a list of strings"),
        ("credentials: {a: {provider: static, token: {command: [pass]}}}", "expected an absolute path"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(text: str, said: str) -> None:
    error = refused(text)
    assert error.reason is Reason.CONFIG_INVALID
    assert said in error.detail


@pytest.mark.parametrize("value", [CANARY, f"'{CANARY}'", f"[{CANARY}]", f"{{value: {CANARY}}}", f"{{env: '{CANARY}!'}}"])
def test_a_secret_written_into_the_file_is_refused_and_not_repeated(value: str) -> None:
    error = refused(f"credentials: {{a: {{provider: static, token: {value}}}}}")
    assert "credentials.a.token: expected " in error.detail
    assert CANARY not in str(error)


def test_a_resolver_is_written_in_one_way() -> None:
    assert resolver_of("[FD00:0::53]") == "[fd00::53]:53"


def sourced(kind: str, *words: str, option: str = "token") -> OutwardConfig:
    secrets = ((option, SecretSource(kind, words)),)
    return OutwardConfig(credentials=(CredentialConfig(name="api", provider="static", secrets=secrets),))


def secret_file(folder: Path, text: str = CANARY + "\n", mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return path


def program(folder: Path, body: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_secret_comes_from_a_file_a_variable_or_a_command(tmp_path: Path) -> None:
    path = secret_file(tmp_path)
    for config_, env in (
        (sourced("file", str(path)), {}),
        (sourced("env", "TOKEN"), {"TOKEN": CANARY}),
        (sourced("command", "/bin/echo", CANARY), {}),
    ):
        assert outward_secrets.read(config_, env, UID).secrets == {"api": {"token": CANARY}}


def test_only_one_newline_is_taken_off(tmp_path: Path) -> None:
    path = secret_file(tmp_path, "a\nb\r\n")
    assert outward_secrets.read(sourced("file", str(path)), {}, UID).secrets["api"] == {"token": "a\nb"}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_secret_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(FumehoodError) as caught:
        outward_secrets.read(sourced("file", str(secret_file(tmp_path, mode=mode))), {}, UID)
    assert caught.value.reason is Reason.CONFIG_UNSAFE
    assert caught.value.detail.startswith("credentials.api.token: ")
    assert CANARY not in str(caught.value)


def test_a_bundle_of_authorities_may_be_read_by_all(tmp_path: Path) -> None:
    path = secret_file(tmp_path, mode=0o644)
    assert outward_secrets.read(sourced("file", str(path), option="ca"), {}, UID).secrets["api"] == {"ca": CANARY}


def test_what_gives_no_secret_is_told_without_showing_what_it_gave(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir(mode=0o755)
    loose = program(broken, f"echo {CANARY}")
    loose.chmod(0o777)
    failing = program(tmp_path, f"echo {CANARY}; echo {CANARY} >&2; exit 3")
    long = tmp_path / "long"
    long.mkdir(mode=0o755)
    cases = [
        (sourced("file", str(tmp_path / "none")), "there is no file", Reason.CONFIG_INVALID),
        (sourced("file", str(secret_file(tmp_path, "\n"))), "gave nothing that could be a secret", Reason.CONFIG_INVALID),
        (sourced("env", "NONE"), "the variable NONE is not set", Reason.CONFIG_INVALID),
        (sourced("env", "ODD"), "is not UTF-8", Reason.CONFIG_INVALID),
        (sourced("command", "/bin/none"), "", Reason.CONFIG_INVALID),
        (sourced("command", str(failing)), "ended with status 3", Reason.CONFIG_INVALID),
        (sourced("command", str(loose)), "can be written by others", Reason.CONFIG_UNSAFE),
        (sourced("command", str(program(long, "yes canary-7f3a9c51 | head -c 70000"))), "printed over", Reason.CONFIG_INVALID),
    ]  # fmt: skip
    for config_, said, reason in cases:
        with pytest.raises(FumehoodError) as caught:
            outward_secrets.read(config_, {"ODD": "\udcff" + CANARY}, UID)
        assert caught.value.reason is reason, said
        assert caught.value.detail.startswith("credentials.api.token: "), caught.value
        assert said in caught.value.detail
        assert CANARY not in str(caught.value)


def test_a_command_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outward_secrets, "COMMAND_S", 0.2)
    with pytest.raises(FumehoodError, match="it took over"):
        outward_secrets.read(sourced("command", str(program(tmp_path, "exec sleep 60"))), {}, UID)


def test_authorities_are_certificates_from_a_file_of_the_operators(tmp_path: Path) -> None:
    path = secret_file(tmp_path, "no certificate", mode=0o644)
    with pytest.raises(FumehoodError) as caught:
        outward_secrets.read(OutwardConfig(authorities=str(path)), {}, UID)
    assert "egress.authorities: " in caught.value.detail
    path.write_text(AUTHORITY.read_text())
    assert outward_secrets.read(OutwardConfig(authorities=str(path)), {}, UID).authorities == AUTHORITY.read_text()
    path.chmod(0o666)
    with pytest.raises(FumehoodError) as caught:
        outward_secrets.read(OutwardConfig(authorities=str(path)), {}, UID)
    assert caught.value.reason is Reason.CONFIG_UNSAFE
    with pytest.raises(FumehoodError, match=r"there is no file"):
        outward_secrets.read(OutwardConfig(authorities=str(tmp_path / "none")), {}, UID)


def test_what_holds_secrets_shows_none(tmp_path: Path) -> None:
    chosen = replace(some_settings(tmp_path), outward=sourced("env", "TOKEN"))
    given = outward_secrets.read(chosen.outward, {"TOKEN": CANARY}, UID)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        processes = Processes(chosen, ours, None, None, outward=given)
        outward = app.outward_of(given)
        for shown in (repr(given), repr(processes), repr(chosen), repr(outward), str(outward.providers)):
            assert CANARY not in shown
    assert outward.providers["api"].kind == "static"


def test_the_other_processes_are_not_told_where_secrets_are(tmp_path: Path) -> None:
    chosen = replace(some_settings(tmp_path), outward=sourced("env", "WHERE_IT_IS"), runtimes=(("crun", "/usr/bin/crun"),))
    ours, theirs = wire.pair()
    Crew(ours, None, {"ledger": ours}, []).brief(chosen)
    with theirs:
        got = wire.receive(theirs)
    assert got is not None
    assert "WHERE_IT_IS" not in str(got[0])
    again, sent = wire.pair()
    wire.send(sent, got[0])
    sent.close()
    briefed = launch._briefed(again)
    assert briefed == (replace(chosen, outward=OutwardConfig()), [])


def test_nothing_that_decides_of_credentials_lies_in_a_workspace(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    link = tmp_path / "link"
    link.symlink_to(workspace / "secret")
    fd = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for outward in (
            sourced("file", str(workspace / "secret")),
            sourced("file", str(link)),
            sourced("command", str(workspace / "bin/pass"), "show"),
            OutwardConfig(authorities=str(workspace / "ca.pem")),
        ):
            with pytest.raises(FumehoodError, match="lies inside the workspace") as caught:
                launch.with_workspace(replace(some_settings(tmp_path), outward=outward), fd)
            assert caught.value.reason is Reason.CONFIG_UNSAFE
    finally:
        os.close(fd)


def test_without_the_sections_nothing_is_imported_or_read() -> None:
    code = (
        "import sys, os\nfrom fumehood import app, launch\nfrom fumehood.outward_config import Given, OutwardConfig\n"
        "class Chosen: outward = OutwardConfig()\n"
        "assert launch.read_outward(Chosen) == Given()\n"
        "before = set(sys.modules)\napp.outward_of(Given())\n"
        "assert set(sys.modules) == before\n"
        "bad = ('fumehood.outward_secrets', 'fumehood.outward_document', 'fumehood.credentials.kinds')\n"
        "sys.exit(any(name in sys.modules for name in bad))"
    )
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=30, check=False).returncode == 0


def test_another_distributions_kind_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site"
    (folder / "theirs-1.dist-info").mkdir(parents=True)
    (folder / "theirs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (folder / "theirs-1.dist-info" / "entry_points.txt").write_text(f"[{kinds.GROUP}]\ntheirs = theirs_kind\n")
    (folder / "theirs_kind.py").write_text("from fumehood.credentials.providers.static import *\nfrom fumehood.credentials.providers.static import make\n")
    monkeypatch.syspath_prepend(str(folder))
    found = config.parse("credentials: {a: {provider: theirs, token: {env: T}}}", "f").outward
    given = outward_secrets.read(found, {"T": CANARY}, UID)
    assert isinstance(given, Given)
    assert list(app.outward_of(given).providers) == ["a"]
    assert "known kinds: aws-sts" in refused("credentials: {a: {provider: nobodys}}").detail
