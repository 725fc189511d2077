"""The decorator: a plain importable function becomes one whose every call runs in a box of its own.

The decorated function is asynchronous and otherwise looks as before (signature, annotations, docstring), so an SDK makes the same
schema of it. It goes below the SDK's decorator, or into a call of it: `server.tool()(tools.word_count)`. The other way round the SDK
would hold the undecorated function and run it on the host, so that is refused.
"""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fumehood.delegate import runtime
from fumehood.delegate.errors import CallFailed, Raised, exception_of
from fumehood.delegate.function import Function
from fumehood.delegate.runtime import Handed
from fumehood.delegate.signatures import Signature, signature_of, unfit
from fumehood.delegate.source import Source, source_of
from fumehood.model import Result
from fumehood.reasons import Reason


def boxed(
    function: Callable[..., Any] | None = None, /, *, profile: str | None = None, tool: str | None = None,
    raises: Sequence[type[Exception]] = (), failure: type[Exception] | None = None,
) -> Any:  # fmt: skip
    """Run every call of a function in a box, through the open `Runtime`. Raises FumehoodError(FUNCTION_UNFIT) where it stands.

    `profile`: one of its own, instead of the runtime's. `tool`: what policy and records call it; default: its name.
    `raises`: exception types, beside the ordinary builtins, that come back as themselves. `failure`: raised, with one line, in
    place of `CallFailed` when there is no result and no exception of the function's (an SDK's ToolError shows it to the model).

    The decorated function raises what the function raised, `RemoteError` for types that are not known, `CallFailed`, or
    FumehoodError when no runtime is open. `__wrapped__` is the function itself, for tests without a box.
    """
    if function is None:
        return lambda inner: _boxed(inner, profile, tool, tuple(raises), failure)
    return _boxed(function, profile, tool, tuple(raises), failure)


def _boxed(
    function: Callable[..., Any], profile: str | None, tool: str | None, raises: tuple[type[Exception], ...],
    failure: type[Exception] | None,
) -> Callable[..., Awaitable[Any]]:  # fmt: skip
    if not inspect.isfunction(function):
        raise unfit(function, f"it is no plain function but a {type(function).__name__}; put @boxed below the SDK's decorator")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise unfit(function, "it is a generator; return a list")
    if _is_registered(function):
        raise unfit(function, "an SDK has registered it already and would run it on the host; put @boxed below the SDK's decorator")
    one = _Boxed(function, source_of(function), signature_of(function), profile, tool or function.__name__, raises, failure)
    runtime.handed.append(Handed(one.tool, one.source, profile))

    @functools.wraps(function)
    async def in_a_box(*args: Any, **kwargs: Any) -> Any:
        return await one.call(args, kwargs)

    return in_a_box


@dataclass(frozen=True, slots=True)
class _Boxed:
    """One decorated function."""

    function: Callable[..., Any]
    source: Source
    signature: Signature
    profile: str | None
    tool: str
    raises: tuple[type[Exception], ...]
    failure: type[Exception] | None

    async def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The function's result, or what it raised."""
        open_runtime = runtime.current()
        arguments, context = self.signature.arguments(args, kwargs)
        work = Function(
            module=self.function.__module__, name=self.function.__name__, source=self.source, signature=self.signature,
            arguments=arguments, **_heard_by(context),
        )  # fmt: skip
        outcome = await open_runtime.run(open_runtime.call(self.tool, arguments, profile=self.profile), work)
        if outcome.result is Result.OK:
            return outcome.value
        if outcome.reason is Reason.FUNCTION_RAISED and isinstance(outcome.value, Raised):
            raise exception_of(outcome.value, self.raises)
        failed = CallFailed(outcome)
        if self.failure is None:
            raise failed
        raise self.failure(str(failed)) from failed


def _heard_by(context: Any) -> dict[str, Any]:
    """Where progress and messages of the function go: to the SDK's context, if the caller gave one."""
    if context is None:
        return {}

    async def progress(done: float, total: float | None, message: str | None) -> None:
        await context.report_progress(done, total, message)

    async def say(level: str, message: str) -> None:
        await getattr(context, level)(message)

    return {"progress": progress, "say": say}


def _is_registered(function: Callable[..., Any]) -> bool:
    """Whether an SDK's tool object holds the function: its decorator gave the function back, so nothing else tells."""
    held = (holder for holder in gc.get_referrers(function) if isinstance(holder, dict))
    return any(holder.get("fn") is function and "parameters" in holder for holder in held)
