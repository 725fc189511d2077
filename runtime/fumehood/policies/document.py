"""The strict model of the `policy:` section of fumehood.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from fumehood.policies.config import KEPT_S, Budget, PolicyConfig
from fumehood.policies.known import Unit
from fumehood.profile.fields import AbsolutePath, Name, Retention, Strict, duration, expected, size
from fumehood.profile.problems import Problem, Problems
from fumehood.profile.source import Source

MAX_FILES = 64
MAX_BUDGETS = 32
_GLOB_CHARS = 256
SUFFIX = ".cedar"


def _file(value: object) -> object:
    if not isinstance(value, str) or not value.endswith(SUFFIX) or "*" in value.rpartition("/")[0]:
        raise expected(f"expected /FOLDER/NAME.cedar, with `*` in the name perhaps, found {value!r}")
    return value


PolicyFile = Annotated[AbsolutePath, BeforeValidator(_file), WithJsonSchema({"type": "string", "pattern": "^/.*\\.cedar$"})]


def _glob(value: object) -> object:
    if not isinstance(value, str) or not 0 < len(value) <= _GLOB_CHARS or not value.isprintable():
        raise expected(f"expected a name, with `*` for any text perhaps, found {value!r:.100}")
    return value


Glob = Annotated[str, BeforeValidator(_glob)]


class ConversationSection(Strict):
    """What is remembered of what a sender did."""

    kept: Retention = Field(default=KEPT_S, description="For how long: what a sender did before is forgotten.")


class BudgetSection(Strict):
    """How much may be used in any stretch of a time; exactly one of `calls`, `cpu`, `egress`, `cost`."""

    name: Name = Field(description="What refusals call it.")
    calls: int | None = Field(default=None, ge=0, le=10**9, description="Calls.")
    cpu: Annotated[float, *duration(0.1, 10**7)] | None = Field(default=None, description="CPU time, such as 10m.")
    egress: Annotated[int, *size(1)] | None = Field(default=None, description="Bytes that leave, such as 100MiB.")
    cost: int | None = Field(default=None, ge=0, le=10**12, description="Units that profiles give their tools with `cost`.")
    per: Annotated[float, *duration(1, 30 * 86_400.0)] = Field(description="The time that it is about, such as 1h.")
    then: Literal["deny", "ask"] = Field(default="deny", description="What becomes of a call that is too much.")
    senders: tuple[Glob, ...] = Field(default=(), strict=False, description="Patterns of senders' names. Default: all.")
    groups: tuple[Glob, ...] = Field(default=(), strict=False, description="Patterns of groups that a sender is in. Default: any.")
    tools: tuple[Glob, ...] = Field(default=(), strict=False, description="Patterns of SERVER/TOOL. Default: all.")
    each: tuple[Literal["sender", "tool"], ...] = Field(
        default=("sender",), strict=False, description="Counted for each of these by itself; [] for all together."
    )


class PolicySection(Strict):
    """Who may call what, in Cedar."""

    files: tuple[PolicyFile, ...] = Field(
        default=(), max_length=MAX_FILES, strict=False, description="Files of policies; `*` in a name stands for any text."
    )
    shipped: tuple[Literal["owner", "senders", "taint"], ...] = Field(
        default=("owner", "taint"), strict=False, description="Which of the policies that ship hold as well."
    )
    budgets: tuple[BudgetSection, ...] = Field(
        default=(), max_length=MAX_BUDGETS, strict=False, description="How much may be used, by whom."
    )
    conversation: ConversationSection = Field(default_factory=ConversationSection, description="What is remembered of a sender.")


def plain(section: PolicySection, source: Source) -> PolicyConfig:
    """The section as the rest of fumehood uses it. Raises Problems."""
    problems: list[Problem] = []
    for name in ("files", "shipped"):
        given = getattr(section, name)
        if len(set(given)) != len(given):
            problems.append(source.problem(("policy", name), "expected each name once"))
    budgets: list[Budget] = []
    for number, each in enumerate(section.budgets):
        at = ("policy", "budgets", number)
        units = [unit for unit in Unit if getattr(each, unit.value) is not None]
        if len(units) != 1:
            problems.append(source.problem(at, "expected exactly one of calls, cpu, egress, cost"))
        elif any(budget.name == each.name for budget in budgets):
            problems.append(source.problem((*at, "name"), f"{each.name} is the name of another budget"))
        else:
            budgets.append(_budget(each, units[0]))
    if problems:
        raise Problems(problems)
    return PolicyConfig(files=section.files, shipped=section.shipped, budgets=tuple(budgets), kept_s=section.conversation.kept)


def _budget(section: BudgetSection, unit: Unit) -> Budget:
    return Budget(
        name=section.name, unit=unit, most=float(getattr(section, unit.value)), per_s=section.per, ask=section.then == "ask",
        senders=section.senders, groups=section.groups, tools=section.tools, each=section.each,
    )  # fmt: skip
