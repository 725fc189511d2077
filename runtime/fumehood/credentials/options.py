"""What the kinds of credentials have in common: strict options, and errors that name the field of fumehood.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

Text = Annotated[str, Field(min_length=1, max_length=1024)]
Texts = Annotated[list[Text], Field(max_length=256)]


class Options(BaseModel):
    """Of one kind of credential; an unknown field is an error, and no error shows a value."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


Model = TypeVar("Model", bound=Options)


def parsed(name: str, model: type[Model], options: Mapping[str, Any]) -> Model:
    """The options of the credential called `name`. Raises FumehoodError(CONFIG_INVALID), naming the field."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(step) for step in ("credentials", name, *first["loc"]))
        raise FumehoodError(Reason.CONFIG_INVALID, f"{field}: {first['msg']}") from None


def required(name: str, secrets: Mapping[str, str], names: Iterable[str]) -> None:
    """Refuse a credential without these secrets. Raises FumehoodError(CONFIG_INVALID)."""
    for each in names:
        if not secrets.get(each):
            raise FumehoodError(Reason.CONFIG_INVALID, f"credentials.{name}.{each}: expected a secret, which has no default")


def maximum_of(allow: BaseModel) -> dict[str, Any]:
    """An `allow` section as `scope` reads it: keys that are not there allow nothing."""
    return {key: value for key, value in allow.model_dump().items() if value is not None}
