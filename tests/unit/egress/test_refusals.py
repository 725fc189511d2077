from __future__ import annotations

import importlib
import re
from pathlib import Path

import fumehood.egress
from fumehood.egress.refusals import Why


def every() -> list[Why]:
    folder = Path(fumehood.egress.__file__).parent
    modules = [importlib.import_module(f"fumehood.egress.{path.stem}") for path in folder.glob("*.py") if path.stem != "__init__"]
    # Imported from another module, it is the same object.
    return list({id(value): value for module in modules for value in vars(module).values() if isinstance(value, Why)}.values())


def test_each_refusal_has_a_code_of_its_own_a_meaning_and_what_to_do() -> None:
    found = every()
    assert len(found) > 15
    codes = [why.code for why in found]
    assert len(set(codes)) == len(codes), sorted(code for code in codes if codes.count(code) > 1)
    for why in found:
        assert re.fullmatch(r"[a-z][a-z0-9_]+", why.code)
        assert why.meaning
        assert not why.meaning.endswith(".")
        assert why.remedy.endswith(".")
