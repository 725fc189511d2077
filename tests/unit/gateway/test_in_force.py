"""What is in force while calls are in flight."""

from fumehood.gateway.in_force import InForce


def test_a_call_ends_under_what_it_began_under_and_only_then_that_is_closed() -> None:
    closed: list[str] = []
    in_force = InForce("old", closed.append)
    with in_force.use() as first, in_force.use() as second:
        in_force.replace("new")
        with in_force.use() as third:
            assert (first, second, third) == ("old", "old", "new")
        assert closed == []
    assert closed == ["old"]
    in_force.replace("newest")
    assert closed == ["old", "new"]


def test_a_call_that_fails_lets_go_too() -> None:
    closed: list[str] = []
    in_force = InForce("old", closed.append)
    try:
        with in_force.use():
            in_force.replace("new")
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert closed == ["old"]
