"""Signing keys: private on disk, named by what they are, one at a time, and never forgotten."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from joserfc.jwk import OKPKey

from fumehood.faults import LedgerGone
from fumehood.keys import FOLDER, KeyFolder, PublicKey, jwks, public_keys
from fumehood.reasons import Reason


def test_a_key_is_made_when_it_is_first_wanted_and_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keys = KeyFolder(tmp_path)
        assert keys.public() == []
        assert not (tmp_path / FOLDER).exists()
        made = keys.current()
    finally:
        os.umask(before)
    (file,) = (tmp_path / FOLDER).iterdir()
    assert file.name == f"{made.public.kid}.jwk"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)] == [0o600, 0o700]
    assert KeyFolder(tmp_path).current().public == made.public


def test_a_key_is_named_by_its_rfc_7638_thumbprint_as_another_library_makes_it(tmp_path: Path) -> None:
    key = KeyFolder(tmp_path).current().public
    jwk = {name: value for name, value in key.jwk().items() if name in {"kty", "crv", "x"}}
    assert OKPKey.import_key(jwk).thumbprint() == key.kid


def test_what_is_exported_has_no_private_half_and_verifies_elsewhere(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path)
    signature = keys.current().sign(b"said")
    text = json.dumps(jwks(keys.public()))
    assert '"d"' not in text
    (known,) = public_keys(text).values()
    assert known.verifies(signature, b"said")
    assert not known.verifies(signature, b"else")
    assert "BEGIN PUBLIC KEY" in known.pem()


def test_a_key_in_a_set_is_known_by_what_it_is_and_not_by_what_it_says(tmp_path: Path) -> None:
    """Who adds a key of their own under the ledger's name gains nothing."""
    one, two = KeyFolder(tmp_path / "a"), KeyFolder(tmp_path / "b")
    for keys in (one, two):
        keys._folder.parent.mkdir()
    lying = {**two.current().public.jwk(), "kid": one.current().public.kid}
    assert one.current().public.kid not in public_keys(json.dumps({"keys": [lying]}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": 1}', '{"keys": [1]}', '{"keys": [{"kty": "OKP", "crv": "X25519", "x": "AA"}]}'])
def test_what_is_no_set_of_keys_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"no JWKS|Expecting|Invalid"):
        public_keys(text)


def test_rotation_leaves_the_old_key_to_runtimes_that_have_not_noticed_and_then_takes_its_private_half(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path)
    first = keys.current()
    second = keys.rotate(3600.0)
    assert keys.current().public.kid == second.kid
    old, new = keys.public()
    assert (old.kid, new.kid) == (first.public.kid, second.kid)
    assert old.until_s is not None
    now_s = time.time()
    assert old.signs_at(now_s + 1800)
    assert not old.signs_at(now_s + 7200)
    assert new.signs_at(now_s + 7200)
    assert not new.signs_at(now_s - 3600)
    file = tmp_path / FOLDER / f"{old.kid}.jwk"
    assert "d" in json.loads(file.read_text())
    file.write_text(json.dumps({**json.loads(file.read_text()), "exp": int(now_s) - 10}))
    third = KeyFolder(tmp_path).rotate(0.0)
    assert "d" not in json.loads(file.read_text())
    assert {key.kid for key in keys.public()} == {first.public.kid, second.kid, third.kid}


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    KeyFolder(tmp_path).current()
    (file,) = (tmp_path / FOLDER).iterdir()
    file.chmod(0o640)
    with pytest.raises(LedgerGone) as gone:
        KeyFolder(tmp_path).current()
    assert gone.value.reason is Reason.STATE_UNAVAILABLE
    assert file.read_text() not in str(gone.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kty": "OKP"}'])
def test_a_file_that_is_no_key_is_told_and_not_replaced(tmp_path: Path, content: str) -> None:
    KeyFolder(tmp_path).current()
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_text(content)
    with pytest.raises(LedgerGone):
        KeyFolder(tmp_path).current()
    assert file.read_text() == content


def test_runtimes_that_begin_at_once_make_one_key(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from fumehood.keys import KeyFolder; print(KeyFolder(Path({str(tmp_path)!r})).current().public.kid)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) for _ in range(4)]
    said = {process.communicate(timeout=60)[0] for process in started}
    assert len(said) == 1
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


def test_a_key_signs_from_its_beginning_to_its_end() -> None:
    key = PublicKey("k", b"", 100.0, 200.0)
    assert [key.signs_at(at_s) for at_s in (98.0, 99.5, 150.0, 200.5, 202.0)] == [False, True, True, True, False]
