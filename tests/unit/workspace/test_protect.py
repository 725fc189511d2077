from __future__ import annotations

import pytest

from fumehood.broker.protect import DEFAULT, first_protected, protected


@pytest.mark.parametrize(
    ("pattern", "path", "directory", "expected"),
    [
        (".git/hooks", ".git/hooks", True, True),
        (".git/hooks", ".git/hooks/pre-commit", False, True),
        (".git/hooks", "a/b/.git/hooks/x/y", False, True),
        (".git/hooks", ".git", True, False),
        (".git/hooks", ".git", False, True),
        (".git/hooks", "a/.git", False, True),
        (".git/hooks", ".git/HEAD", False, False),
        (".git/hooks", ".GIT/Hooks/x", False, True),
        (".git/hooks", "hooks", False, False),
        (".git/hooks", ".gitignore", False, False),
        (".envrc", ".envrc", False, True),
        (".envrc", "deep/.envrc", False, True),
        (".envrc", ".envrc2", False, False),
        ("/Makefile", "Makefile", False, True),
        ("/Makefile", "sub/Makefile", False, False),
        ("*.sh", "a/run.sh", False, True),
        ("a/*/c", "a/b/c", False, True),
        ("a/*/c", "a/b/x/c", False, False),
        ("a/*/c", "a/b", False, True),
        ("a/**/c", "a/c", False, True),
        ("a/**/c", "a/b/x/c/d", False, True),
        ("a/**/c", "a", False, True),
        ("**/c", "a/b", False, False),
        ("a/", "a/b", False, True),
        ("[ab]", "b", False, True),
        ("", "a", False, False),
        ("/", "a", False, False),
    ],
)
def test_a_pattern_protects_what_it_names(pattern: str, path: str, directory: bool, expected: bool) -> None:
    assert protected([pattern], path, directory=directory) is expected


def test_ordinary_work_is_not_protected_by_default() -> None:
    for path in ("src/main.py", ".git/index", ".git/objects/aa/bb", ".git/refs/heads/main", "README.md"):
        assert not protected(DEFAULT, path, directory=False)


def test_only_the_first_few_are_named() -> None:
    assert first_protected(["x"], ((f"{n}/x", False) for n in range(10**9)), 3) == ["0/x", "1/x", "2/x"]
