"""Reads the operator's secrets and authorities, with the rights of whoever starts the runtime. Standard library only.

Called after the other processes were forked, so broker and ledger never hold a secret, and before the worker gives up the rights
to read them. Errors name the place in fumehood.yaml and the file or variable, and never what was in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from fumehood.faults import FumehoodError
from fumehood.outward_config import Given, OutwardConfig, SecretSource
from fumehood.reasons import Reason
from fumehood.safe_files import check_trusted, read_trusted

SECRET_BYTES = 64 * 1024
AUTHORITIES_BYTES = 1024 * 1024
COMMAND_S = 30.0
# Given like secrets, because the worker could not read them either; but anybody may know them.
PUBLIC = frozenset({"ca", "certificate"})


def read(config: OutwardConfig, env: Mapping[str, str], uid: int) -> Given:
    """Everything that the configuration points at. Raises FumehoodError(CONFIG_INVALID | CONFIG_UNSAFE)."""
    hook = config.webhook
    return Given(
        config=config,
        authorities=None if config.authorities is None else _authorities(config.authorities, uid),
        secrets={
            each.name: {
                option: _secret(f"credentials.{each.name}.{option}", source, env, uid, private=option not in PUBLIC)
                for option, source in each.secrets
            }
            for each in config.credentials
        },
        webhook_secret=None if hook is None else _secret("approvals.webhook.secret", hook.secret, env, uid, private=True),
    )


def _authorities(path: str, uid: int) -> str:
    import ssl

    try:
        text = read_trusted(path, uid, limit_bytes=AUTHORITIES_BYTES)
        # Tried where it can still be refused: the gate would have to do without.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except FileNotFoundError:
        raise _invalid("egress.authorities", f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise _invalid("egress.authorities", f"{path} holds no certificates in PEM: {error}") from None
    return text


def _secret(where: str, source: SecretSource, env: Mapping[str, str], uid: int, *, private: bool) -> str:
    try:
        if source.kind == "file":
            text = _from_file(source.words[0], uid, private=private)
        elif source.kind == "env":
            text = _from_environment(source.words[0], env)
        else:
            text = _from_command(source.words, uid)
    except FumehoodError as error:
        raise FumehoodError(error.reason, f"{where}: {error.detail}", remedy=error.remedy) from None
    # One newline, which editors and commands put there; a key in PEM is used with and without.
    text = text.removesuffix("\n").removesuffix("\r")
    if not text or "\0" in text:
        raise _invalid(where, f"{_named(source)} gave nothing that could be a secret")
    return text


def _from_file(path: str, uid: int, *, private: bool) -> str:
    try:
        return read_trusted(path, uid, limit_bytes=SECRET_BYTES, private=private)
    except FileNotFoundError:
        raise FumehoodError(Reason.CONFIG_INVALID, f"there is no file {path}", remedy="Name an existing file.") from None


def _from_environment(name: str, env: Mapping[str, str]) -> str:
    if name not in env:
        raise FumehoodError(Reason.CONFIG_INVALID, f"the variable {name} is not set", remedy="Set it for this process.")
    if not _is_text(env[name]):
        raise FumehoodError(Reason.CONFIG_INVALID, f"the variable {name} is not UTF-8", remedy="Set it to text.")
    return env[name]


def _from_command(argv: tuple[str, ...], uid: int) -> str:
    """What a command of the operator's prints. Its standard error goes nowhere: it may tell more than it should."""
    import subprocess

    try:
        check_trusted(argv[0], uid)
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=COMMAND_S, check=False, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = error.strerror if isinstance(error, OSError) else f"it took over {COMMAND_S:g} s"
        raise _failed(argv, f"could not be run: {why}") from None
    if done.returncode != 0:
        raise _failed(argv, f"ended with status {done.returncode}")
    if len(done.stdout) > SECRET_BYTES:
        raise _failed(argv, f"printed over {SECRET_BYTES} bytes")
    try:
        return done.stdout.decode()
    except UnicodeDecodeError:
        raise _failed(argv, "printed what is not UTF-8") from None


def _failed(argv: tuple[str, ...], why: str) -> FumehoodError:
    return FumehoodError(Reason.CONFIG_INVALID, f"{argv[0]} {why}", remedy="Run it by hand, as this user.")


def _invalid(where: str, detail: str) -> FumehoodError:
    return FumehoodError(Reason.CONFIG_INVALID, f"{where}: {detail}")


def _named(source: SecretSource) -> str:
    return {"file": "the file ", "env": "the variable ", "command": "the command "}[source.kind] + source.words[0]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of the environment that are not UTF-8
        return False
    return True
