"""The gate's own start-up with a PostgreSQL server: what it asks for, and what it believes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.egress import pg_messages as pg
from fumehood.egress.pg_login import Login, Unacceptable, parameters
from fumehood.egress.pg_messages import Message, Startup
from fumehood.egress.scram import PLAIN, PLUS, Client
from fumehood.reach import Secret, SecretForm

PASSWORD = "canary-of-the-password"  # noqa: S105
SECRET = Secret(form=SecretForm.PASSWORD, parts={"user": "leased", "password": PASSWORD})


def asked(**values: str) -> Startup:
    return Startup(0, {name: value.encode() for name, value in values.items()})


def wanted(**values: str) -> dict[str, bytes]:
    return {name: value.encode() for name, value in values.items()}


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (asked(user="me", database="app"), wanted(user="leased", database="app")),
        (asked(user="postgres"), wanted(user="leased", database="postgres")),
        (asked(database="app"), wanted(user="leased", database="app")),
        (
            asked(user="me", database="app", application_name="x y", TimeZone="UTC", DateStyle="ISO"),
            wanted(user="leased", database="app", application_name="x y", timezone="UTC", datestyle="ISO"),
        ),
        (
            asked(user="me", database="app", options="-c statement_timeout=5s --search-path=a\\ b  -csearch_path=a\\ b"),
            wanted(user="leased", database="app", statement_timeout="5s", search_path="a b"),
        ),
        (asked(user="me", database="app", options=""), wanted(user="leased", database="app")),
        (Startup(2, {"user": b"me", "_pq_.protocol_managed_params": b""}), wanted(user="leased", database="me")),
        (Startup(0, {"user": b"me", "application_name": b"\xff\xfe"}), {**wanted(user="leased", database="me"), "application_name": b"\xff\xfe"}),
    ],
)  # fmt: skip
def test_the_leased_role_takes_the_place_of_the_boxs_user(start: Startup, expected: dict[str, bytes]) -> None:
    assert parameters(start, SECRET) == expected


@pytest.mark.parametrize(
    "start",
    [
        asked(user="me", replication="database"),
        asked(user="me", replication="false"),
        asked(user="me", Replication="true"),
        asked(user="me", options="-c replication=true"),
        asked(user="me", options="--local-preload-libraries=evil"),
        asked(user="me", options="-clocal_preload_libraries=evil"),
        asked(user="me", options="-c local_preload_libraries=evil"),
        asked(user="me", session_preload_libraries="evil"),
        asked(user="me", role="postgres"),
        asked(user="me", session_authorization="postgres"),
        asked(user="me", options="-c session_authorization=postgres"),
        asked(user="me", options="-E"),
        asked(user="me", options="-c"),
        asked(user="me", options="-c x"),
        asked(user="me", options="-d 5"),
        asked(user="me", options="postgres"),
        asked(user="me", options="-c search_path=a -c search_path=b"),
        asked(user="me", options="-c search_path=a", search_path="b"),
        asked(user="me", timezone="UTC", TimeZone="CET"),
        asked(),
    ],
)
def test_what_a_session_may_not_begin_with_is_refused(start: Startup) -> None:
    with pytest.raises(Unacceptable) as refused:
        parameters(start, SECRET)
    assert refused.value.remedy.endswith(".")


@pytest.mark.parametrize(("database", "fine"), [(None, True), ("me", True), ("only", True), ("other", False)])
def test_a_credential_for_one_database_is_for_no_other(database: str | None, fine: bool) -> None:
    secret = Secret(form=SecretForm.PASSWORD, parts={**SECRET.parts, "database": "only"})
    start = asked(user="me") if database is None else asked(user="me", database=database)
    if fine:
        assert parameters(start, secret)["database"] == b"only"
    else:
        with pytest.raises(Unacceptable, match="postgres_start_up"):
            parameters(start, secret)


@given(st.binary(max_size=100))
def test_no_options_get_past_the_list(value: bytes) -> None:
    from fumehood.egress.pg_login import PARAMETERS

    try:
        found = parameters(Startup(0, {"user": b"me", "options": value.replace(b"\0", b"")}), SECRET)
    except Unacceptable:
        return
    assert set(found) <= {"user", "database"} | PARAMETERS


def r(code: int, body: bytes = b"") -> bytes:
    return Message(b"R", struct.pack("!I", code) + body).encoded()


READY = Message(b"Z", b"I").encoded()
STATUS = Message(b"S", b"server_version\x0015\0").encoded()
NOTICE = Message(b"N", b"SNOTICE\0Mhello\0\0").encoded()
KEY = Message(b"K", struct.pack("!I", 77) + b"real").encoded()


@dataclass
class Server:
    """The server's side of SCRAM, as PostgreSQL has it; `password` is what it believes."""

    password: str = PASSWORD
    mechanisms: tuple[str, ...] = (PLAIN,)
    binding: bytes = b""
    said: list[bytes] = field(default_factory=list)
    challenge: str = ""
    bare: str = ""
    gs2: str = ""

    def offer(self) -> bytes:
        return r(10, b"".join(name.encode() + b"\0" for name in self.mechanisms) + b"\0")

    def answer(self, data: bytes) -> bytes:
        """To a packet of the client's."""
        self.said.append(data)
        if data[:1] != b"p":
            return self.offer()
        body = data[5:]
        if not self.challenge:
            _, _, rest = body.partition(b"\0")
            text = rest[4:].decode()
            self.gs2, self.bare = text[: text.index("n=")], text[text.index("n=") :]
            nonce = self.bare.partition("r=")[2]
            self.challenge = f"r={nonce}SRV,s={base64.b64encode(b'salt').decode()},i=4096"
            return r(11, self.challenge.encode())
        without, _, proof = body.decode().partition(",p=")
        salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), b"salt", 4096)
        stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
        signed = f"{self.bare},{self.challenge},{without}".encode()
        signature = hmac.digest(stored, signed, "sha256")
        key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), signature, strict=True))
        assert base64.b64decode(without.split(",")[0][2:]) == self.gs2.encode() + self.binding
        if hashlib.sha256(key).digest() != stored:
            return Message(b"E", b"SFATAL\0C28P01\0Mpassword authentication failed\0\0").encoded()
        last = b"v=" + base64.b64encode(hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256"))
        return r(12, last) + r(0) + STATUS + KEY + NOTICE + READY


def login(binding: bytes | None = None) -> Login:
    return Login(wanted(user="leased", database="app"), Client(PASSWORD, "ourNonce", binding, encrypted=binding is not None), 5, b"mine")


def run(each: Login, server: Server, *, cut: int = 10_000) -> bytes:
    """Until it is ready; the server's bytes come in pieces of `cut`."""
    while not each.ready:
        reply = server.answer(each.outbound())
        for at in range(0, len(reply), cut):
            each.receive(reply[at : at + cut])
            if each.challenge is not None:
                each.prove()
    return bytes(each.inbound)


@pytest.mark.parametrize("cut", [1, 7, 10_000])
def test_a_server_that_knows_the_verifier_is_believed_and_its_key_stays_here(cut: int) -> None:
    each, server = login(), Server()
    own = Message(b"K", struct.pack("!I", 5) + b"mine").encoded()
    assert run(each, server, cut=cut) == pg.authentication_ok() + STATUS + own + NOTICE + READY
    assert each.key == (77, b"real")
    assert each.mechanism == PLAIN
    assert server.said[0] == pg.startup(wanted(user="leased", database="app"))
    assert PASSWORD.encode() not in b"".join(server.said)
    assert PASSWORD not in repr(each)


def test_the_channel_is_bound_when_the_server_offers_it() -> None:
    each, server = login(b"hash"), Server(mechanisms=(PLUS, PLAIN), binding=b"hash")
    run(each, server)
    assert each.mechanism == PLUS


def test_what_follows_readiness_is_the_sessions() -> None:
    each, server = login(), Server()
    data = server.answer(each.outbound())
    each.receive(data)
    each.receive(server.answer(each.outbound()))
    each.prove()
    each.receive(server.answer(each.outbound()) + b"A\0\0\0\x04and half a mess")
    assert each.inbound.endswith(READY + b"A\0\0\0\x04and half a mess")


@pytest.mark.parametrize(
    ("wants", "word"), [(r(0), "trust"), (r(3), "cleartext"), (r(5, b"salt"), "MD5"), (r(7), "GSSAPI"), (r(99), "know")]
)
def test_a_server_that_wants_the_password_or_nothing_gets_nothing(wants: bytes, word: str) -> None:
    each = login()
    each.outbound()
    with pytest.raises(Unacceptable) as refused:
        each.receive(wants)
    assert refused.value.why.code == "postgres_not_scram"
    assert word in refused.value.detail
    assert each.outbound() == b""


def test_a_wrong_password_is_told_in_the_servers_words() -> None:
    with pytest.raises(Unacceptable) as refused:
        run(login(), Server("another"))
    assert refused.value.sqlstate == "28P01"
    assert "password authentication failed" in refused.value.detail


def test_a_server_that_repeats_the_password_in_an_error_is_not_quoted() -> None:
    each = login()
    with pytest.raises(Unacceptable) as refused:
        each.receive(Message(b"E", b"C28P01\0Mno " + PASSWORD.encode() + b"\0\0").encoded())
    assert PASSWORD not in str(refused.value) + refused.value.detail + repr(refused.value.facts)


ERROR = Message(b"E", b"SFATAL\0C3D000\0Mno such database\0\0").encoded()


def test_an_error_after_the_proof_is_the_boxs_to_read() -> None:
    each, server = login(), Server()
    each.receive(server.answer(each.outbound()))
    each.receive(server.answer(each.outbound()))
    each.prove()
    reply = server.answer(each.outbound())
    each.receive(reply[: reply.index(STATUS)] + ERROR)
    assert each.ready
    assert bytes(each.inbound) == pg.authentication_ok() + ERROR


@pytest.mark.parametrize(
    "early", [r(12, b"v=AAAA"), READY, KEY, STATUS, r(11, b"r=x"), r(0) + READY, Message(b"T", b"").encoded(), b"R\0\0\0\x05\0", b"R\0\0\0\x03"]
)  # fmt: skip
def test_nothing_is_believed_before_the_server_proved_itself(early: bytes) -> None:
    for stage in range(2):
        each, server = login(), Server()
        if stage:
            each.receive(server.answer(each.outbound()))
            early = early if early[:1] != b"R" or early[5:9] != struct.pack("!I", 11) else r(12, b"v=AAAA")
        with pytest.raises(Unacceptable):
            each.receive(early)
        assert not each.inbound


def test_a_proof_that_comes_before_ours_is_refused() -> None:
    each, server = login(), Server()
    each.receive(server.answer(each.outbound()))
    challenge = server.answer(each.outbound())
    with pytest.raises(Unacceptable):
        each.receive(challenge + r(12, b"v=AAAA"))


def test_a_server_that_talks_without_end_is_left() -> None:
    each = login()
    with pytest.raises(Unacceptable, match="postgres_garbage"):
        each.receive(NOTICE * 20_000)


@given(st.lists(st.binary(max_size=60), max_size=5), st.booleans())
def test_no_bytes_of_a_server_raise_anything_else_or_reach_the_box(parts: list[bytes], offered: bool) -> None:
    each = login()
    if offered:
        each.receive(Server().offer())
    for part in parts:
        try:
            each.receive(part)
        except Unacceptable:
            return
        if each.challenge is not None:
            each.prove()
    assert not each.inbound
