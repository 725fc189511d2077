"""Whose the processes are: subordinate ids as subuid(5) writes them, and whose folders a user's state and images are in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fumehood import accounts
from fumehood.config import Config
from fumehood.subids import subordinate_range

USER = 54321


def test_a_range_is_found_by_login_name_or_by_uid(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text("bob:100000:65536\n1000:165536:65536\nada:231072:1000\n# ada:1:9999999\nada:x:65536\n")
    assert subordinate_range(file, "bob") == (100000, 65536)
    assert subordinate_range(file, "ada", "1000") == (165536, 65536)
    assert subordinate_range(file, "ada", "1001") == (231072, 1000)
    assert subordinate_range(file, "eve", "1002") is None
    assert subordinate_range(tmp_path / "none", "bob") is None


def test_a_users_state_is_the_users_whatever_the_systems_configuration_says(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}
    systems = Config(state="/srv/fumehood", file="/etc/passwd")  # a file of root's
    assert accounts.users_state(env, systems, USER).root == tmp_path / ".local/state/fumehood"
    assert accounts.image_folder(env, systems, USER) == Path("/srv/fumehood/images")
    assert accounts.image_folder(env, systems, 0) == Path("/srv/fumehood/images")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a file to somebody else")
def test_a_users_own_configuration_may_move_the_users_state_but_not_roots_images(tmp_path: Path) -> None:
    file = tmp_path / "fumehood.yaml"
    file.write_text("")
    os.chown(file, USER, USER)
    mine = Config(state=str(tmp_path / "state"), file=str(file))
    assert accounts.users_state({"HOME": "/nonexistent"}, mine, USER).root == tmp_path / "state"
    assert accounts.image_folder({}, mine, USER) == Path("/var/lib/fumehood/images")


def test_images_of_the_users_own_come_first(tmp_path: Path) -> None:
    env = {"FUMEHOOD_STATE": str(tmp_path)}
    assert accounts.image_folder(env, Config(), USER) == Path("/var/lib/fumehood/images")
    (tmp_path / "images" / "names").mkdir(parents=True)
    assert accounts.image_folder(env, Config(), USER) == tmp_path / "images"
