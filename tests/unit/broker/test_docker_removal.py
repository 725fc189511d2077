"""Removing a container asks until it is gone, whatever the engine answers in between."""

from __future__ import annotations

from typing import Any, cast

import docker
import pytest
import requests
from docker.errors import APIError, NotFound

from fumehood.broker.engines import docker as engine


class Answers:
    """An engine that gives these answers to removals, one after the other, and the last one for ever."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    def remove_container(self, container: str, *, force: bool, v: bool) -> None:
        assert (container, force, v) == ("box", True, True)
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is not None:
            raise answer


def error(status: int) -> APIError:
    response = requests.Response()
    response.status_code = status
    return APIError("it ends at this moment", response=response)


def removed(answers: Answers) -> bool:
    return engine.remove_container(cast("docker.APIClient", answers), "box")


@pytest.mark.parametrize("status", [409, 500])
def test_a_box_that_ends_while_it_is_killed_is_removed_all_the_same(status: int) -> None:
    answers: Any = Answers(error(status), error(status), None)
    assert (removed(answers), answers.asked) == (True, 3)


def test_a_container_that_is_gone_is_removed() -> None:
    assert removed(Answers(NotFound("no such container"))) is True


def test_an_engine_that_never_removes_it_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_GONE_DEADLINE_S", 0.05)
    assert removed(Answers(error(409))) is False


def test_an_engine_that_does_not_answer_is_not_believed() -> None:
    assert removed(Answers(requests.exceptions.ConnectionError("gone"))) is False
