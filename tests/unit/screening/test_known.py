"""The registry of secrets: who is in it, and for how long."""

from __future__ import annotations

import os
import subprocess
import sys

from fakes import FakeClock
from fumehood.reach import Secret, SecretForm
from fumehood.screening import known as module
from fumehood.screening.known import AFTER_S, KnownSecrets


def token(text: str) -> Secret:
    return Secret(form=SecretForm.TOKEN, parts={"token": text})


def has(known: KnownSecrets, text: str) -> bool:
    return bool(list(known.spans(f"x {text} y".encode())))


def test_a_secret_is_known_while_it_lives_and_a_little_longer() -> None:
    clock = FakeClock()
    known = KnownSecrets(clock.monotonic_s)
    known.enter("lease", token("a-secret-of-a-lease"))
    clock.advance(10**6)
    assert has(known, "a-secret-of-a-lease")
    known.leave("lease")
    clock.advance(AFTER_S - 1)
    assert has(known, "a-secret-of-a-lease")
    clock.advance(2)
    assert not has(known, "a-secret-of-a-lease")


def test_one_that_could_not_be_revoked_is_known_until_it_expires() -> None:
    clock = FakeClock()
    known = KnownSecrets(clock.monotonic_s)
    known.enter("lease", token("a-secret-of-a-lease"))
    known.leave("lease", 3600.0)
    clock.advance(3599)
    assert has(known, "a-secret-of-a-lease")
    clock.advance(2)
    assert not has(known, "a-secret-of-a-lease")


def test_those_that_left_are_bounded_and_those_that_live_are_never_forgotten() -> None:
    known = KnownSecrets(FakeClock().monotonic_s)
    known.enter_texts("operator", ["the-operators-own-secret"])
    for number in range(module.MOST + 50):
        known.enter(f"lease {number}", token(f"secret-of-lease-{number:06}"))
        known.leave(f"lease {number}")
    assert has(known, "the-operators-own-secret")
    assert not has(known, "secret-of-lease-000000")
    assert has(known, f"secret-of-lease-{module.MOST + 49:06}")


def test_each_form_has_its_secret_parts_and_a_password_its_user() -> None:
    known = KnownSecrets()
    known.enter("a", Secret(form=SecretForm.AWS, parts={"key_id": "AKID-is-a-name", "key": "the-key-itself", "session": "a-session-token"}))
    known.enter("b", Secret(form=SecretForm.PASSWORD, parts={"user": "robert", "password": "letmein-please"}))
    assert [has(known, each) for each in ("AKID-is-a-name", "the-key-itself", "a-session-token", "robert")] == [False, True, True, False]
    assert has(known, "cm9iZXJ0OmxldG1laW4tcGxlYXNl"), "the Basic value"


def test_a_short_secret_is_not_looked_for_and_none_is_ever_shown() -> None:
    known = KnownSecrets()
    known.enter("a", token("short"))
    assert not has(known, "short")
    known.enter("b", token("long-enough-to-be-found"))
    assert repr(known) == "<1 known secrets>"


def test_a_secret_of_two_leases_is_known_until_the_last_is_gone() -> None:
    clock = FakeClock()
    known = KnownSecrets(clock.monotonic_s)
    for name in ("first", "second", "second"):
        known.enter(name, token("the-same-for-both"))
    known.leave("first")
    clock.advance(AFTER_S + 1)
    assert has(known, "the-same-for-both")
    known.leave("second")
    clock.advance(AFTER_S + 1)
    assert not has(known, "the-same-for-both")


def test_the_privileged_process_has_no_engine_for_patterns() -> None:
    code = "import sys, fumehood.broker.serve, fumehood.ledger.serve; print([name for name in sys.modules if name.split('.')[0] == 're2'])"
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
