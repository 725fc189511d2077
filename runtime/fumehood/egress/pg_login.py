"""What becomes of a box's start-up message, and the gate's own authentication to the server: pure, fed with bytes.

The box connects with any user name and without a password. What it asks for is judged here and written anew: the leased role in
place of its user, and only parameters that a client may set anyway. `Login` then speaks to the server until it is ready for queries.
Invariants: the password is used for SCRAM-SHA-256 and for nothing else, so neither a server nor a listener learns it; nothing of the
server's reaches the box before the server has proved that it knows the password's verifier; the session's real key never does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fumehood.egress import pg_messages, scram
from fumehood.egress.pg_messages import Malformed, Startup
from fumehood.egress.refusals import Rejected, Why
from fumehood.reach import Secret

# Enough for every parameter's status and some notices; a server that says more before it is ready is none.
MOST_LOGIN_BYTES = 256 * 2**10
# What drivers send at the start. Each can be set by any session later, so none is a right; the rest is refused because some can be
# set at the start only, and load libraries (`local_preload_libraries`) or read the wire as no client does (`replication`).
PARAMETERS = frozenset({
    "application_name", "bytea_output", "client_encoding", "client_min_messages", "datestyle", "default_transaction_deferrable",
    "default_transaction_isolation", "default_transaction_read_only", "extra_float_digits", "geqo",
    "idle_in_transaction_session_timeout", "idle_session_timeout", "intervalstyle", "jit", "lc_messages", "lc_monetary",
    "lc_numeric", "lc_time", "lock_timeout", "search_path", "standard_conforming_strings", "statement_timeout",
    "tcp_keepalives_count", "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_user_timeout", "timezone",
    "transaction_timeout", "work_mem",
})  # fmt: skip
_METHODS = {0: "nothing (trust)", 2: "Kerberos", 3: "a cleartext password", 5: "MD5", 7: "GSSAPI", 9: "SSPI"}
_OPTION = re.compile(r"-c\s*([^=\s]+)=(.*)|--([^=\s]+)=(.*)", re.DOTALL)


START_UP_REFUSED = Why(
    "postgres_start_up",
    "the box asks for what its session may not have",
    "Change the connection string as the error says.",
)
NOT_SCRAM = Why(
    "postgres_not_scram", "the server does not want SCRAM-SHA-256, so the password stays here",
    "Give the role a scram-sha-256 line in pg_hba.conf, and password_encryption = scram-sha-256.",
)  # fmt: skip
UNPROVED = Why(
    "postgres_unproved", "the server does not know the credential's password, or something sits in between",
    "Check that the rule names the server that the credential is for.",
)  # fmt: skip
SERVER_REFUSED = Why(
    "postgres_refused", "the server refused the leased role", "Check the credential, pg_hba.conf and the server's log."
)
NOT_A_SERVER = Why(
    "postgres_garbage",
    "the server does not speak PostgreSQL's protocol",
    "Check that the rule names a PostgreSQL server.",
)


class Unacceptable(Rejected):
    """The end of a start-up, with PostgreSQL's code for it and what a person is told."""

    def __init__(self, why: Why, sqlstate: str, detail: str, remedy: str | None = None) -> None:
        """Make one; `detail` holds no secret."""
        super().__init__(why, sqlstate=sqlstate, detail=detail)
        self.sqlstate = sqlstate
        self.detail = detail
        self.remedy = remedy or why.remedy


def parameters(asked: Startup, secret: Secret) -> dict[str, bytes]:
    """The parameters of the gate's own start-up message. Raises Unacceptable."""
    found: dict[str, bytes] = {}
    for name, value in asked.parameters.items():
        if name in {"user", "database"} or name.startswith("_pq_."):
            continue
        given = _options(value) if name == "options" else {name.lower(): value}
        for setting, text in given.items():
            if setting not in PARAMETERS:
                raise Unacceptable(
                    START_UP_REFUSED, "0A000", f"the start-up parameter {name_of(setting)} is refused", _later(setting)
                )
            if found.setdefault(setting, text) != text:
                raise Unacceptable(
                    START_UP_REFUSED, "08P01", f"the start-up parameter {setting} is there twice", "Give it once."
                )
    return {"user": secret.parts["user"].encode(), "database": _database(asked, secret), **found}


def _later(setting: str) -> str:
    if setting == "replication":
        return "Replication is not for boxes."
    return "Set it with SET after connecting, if the role may."


def _database(asked: Startup, secret: Secret) -> bytes:
    """The database asked for, which by the protocol's default is the user's name; the credential's, if it is for one alone."""
    user = asked.parameters.get("user", b"")
    wanted = asked.parameters.get("database", b"") or user
    only = secret.parts.get("database")
    if only is None:
        if not wanted:
            raise Unacceptable(
                START_UP_REFUSED, "3D000", "no database is named", "Name the database in the connection string."
            )
        return wanted
    # Clients put the user's name there when nothing was said, so that name says nothing.
    if wanted not in {user, only.encode()}:
        raise Unacceptable(
            START_UP_REFUSED, "3D000", f"the credential is for the database {only} alone", f"Connect to {only}."
        )
    return only.encode()


def _options(value: bytes) -> dict[str, bytes]:
    """`-c name=value` and `--name=value`, split as PostgreSQL splits them. Raises Unacceptable for any other switch."""
    words, word, escaped, inside = [], "", False, False
    for each in value.decode("utf-8", "surrogateescape"):
        if escaped:
            word, escaped = word + each, False
        elif each == "\\":
            escaped = inside = True
        elif each in " \t\n\v\f\r":
            if inside:
                words.append(word)
            word, inside = "", False
        else:
            word, inside = word + each, True
    if inside:
        words.append(word)
    found: dict[str, bytes] = {}
    remaining = iter(words)
    for switch in remaining:
        whole = f"-c{next(remaining, '')}" if switch == "-c" else switch
        match = _OPTION.fullmatch(whole)
        if match is None:
            raise Unacceptable(
                START_UP_REFUSED,
                "0A000",
                "the start-up parameter options has a switch that is refused",
                "Use `-c name=value` alone.",
            )
        name, text = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
        setting, raw = name.replace("-", "_").lower(), text.encode("utf-8", "surrogateescape")
        if found.setdefault(setting, raw) != raw:
            raise Unacceptable(START_UP_REFUSED, "08P01", f"options sets {name_of(setting)} twice", "Give it once.")
    return found


def name_of(setting: str) -> str:
    """A parameter's name as it may be shown: short and printable."""
    return re.sub(r"[^A-Za-z0-9_.]", "?", setting)[:63]


@dataclass(slots=True)
class Login:
    """The gate's session with a server, from its start-up message until `ready`.

    Give it what the server says (`receive`); send `outbound()` to the server; when `challenge` is there, call `prove`, which takes
    milliseconds of computing. When `ready`, `inbound` is what the box gets. Raises Unacceptable, after which it is over.
    """

    parameters: Mapping[str, bytes]
    client: scram.Client = field(repr=False)
    own_pid: int
    own_key: bytes = field(repr=False)
    challenge: scram.Challenge | None = None
    ready: bool = False
    key: tuple[int, bytes] | None = field(default=None, repr=False)
    mechanism: str = ""
    inbound: bytearray = field(default_factory=bytearray, repr=False)
    _out: bytearray = field(default_factory=bytearray, repr=False)
    _data: bytearray = field(default_factory=bytearray, repr=False)
    _seen: int = 0
    _stage: str = "offer"

    def __post_init__(self) -> None:
        self._out += pg_messages.startup(self.parameters)

    def outbound(self) -> bytes:
        """What goes to the server now."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> None:
        """Take what the server said."""
        self._data += data
        self._seen += len(data)
        try:
            while not self.ready and (found := pg_messages.message(bytes(self._data))) is not None:
                each, length = found
                del self._data[:length]
                self._take(each)
        except Malformed as error:
            raise _broken(str(error)) from error
        except scram.ScramError as error:
            raise Unacceptable(UNPROVED, "28000", str(error)) from error
        if self.ready:
            # What comes with it belongs to the session already: a notification, or the answer to nothing.
            self.inbound += self._data
            self._data.clear()
        elif self._seen > MOST_LOGIN_BYTES:
            raise _broken("it says too much before it is ready")

    def prove(self) -> None:
        """Answer the challenge."""
        if self.challenge is None:
            raise _broken("a proof without a challenge")
        challenge, self.challenge = self.challenge, None
        self._out += pg_messages.sasl_response(self.client.final(challenge))

    def _take(self, each: pg_messages.Message) -> None:
        if each.kind == b"R":
            self._authenticate(*pg_messages.authentication(each.body))
        elif each.kind == b"E" and self._stage != "settings":
            raise _refused(pg_messages.error_fields(each.body), self.client.password)
        elif each.kind == b"N" and self._stage != "settings":
            pass  # from a server that has proved nothing yet
        elif self._stage != "settings":
            raise _broken("a message out of order")
        elif each.kind == b"E":
            # Such as a database that is not there: PostgreSQL's own words, to a client that reads them.
            self.inbound += each.encoded()
            self.ready = True
        elif each.kind == b"K":
            self.key = pg_messages.backend_key(each.body)
            self.inbound += pg_messages.key_data(self.own_pid, self.own_key)
        elif each.kind in {b"S", b"N", b"Z"}:
            self.inbound += each.encoded()
            self.ready = each.kind == b"Z"
        else:
            raise _broken("a message out of order")

    def _authenticate(self, wanted: int, rest: bytes) -> None:
        match (self._stage, wanted):
            case ("offer", 10):
                mechanism = self.client.mechanism(pg_messages.mechanisms(rest))
                self._out += pg_messages.sasl_initial(mechanism, self.client.first())
                self.mechanism, self._stage = mechanism, "challenge"
            case ("challenge", 11):
                self.challenge, self._stage = self.client.challenged(rest), "proof"
            case ("proof", 12) if self.challenge is None:
                self.client.finish(rest)
                self._stage = "done"
            case ("done", 0):
                self._stage = "settings"
                self.inbound += pg_messages.authentication_ok()
            case ("offer", _):
                method = _METHODS.get(wanted, "a proof that we do not know")
                raise Unacceptable(NOT_SCRAM, "28000", f"the server wants {method}, not SCRAM-SHA-256")
            case _:
                raise _broken("its authentication is out of order")


def _broken(what: str) -> Unacceptable:
    return Unacceptable(NOT_A_SERVER, "08P01", f"the server broke the protocol: {what}")


def _refused(fields: Mapping[str, str], password: str) -> Unacceptable:
    """A server's refusal in its own words, unless these hold the password."""
    code, said = fields.get("C", ""), fields.get("M", "")
    if password and password in said:
        said = "(not shown)"
    state = code if re.fullmatch(r"[0-9A-Z]{5}", code) else "28000"
    return Unacceptable(SERVER_REFUSED, state, f"the server refused the leased role: {said}")
