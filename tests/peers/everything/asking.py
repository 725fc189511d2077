"""The tools that need something of the client: in mid-call (2025-11-25), or by answering `input_required` (2026-07-28).

What a round of `input_required` carries to the next is signed with a key of this process alone, as the SDKs' own default
does: a retry that reaches another process is refused. So a gateway that runs each round in a new container shows here.
"""

import hashlib
import hmac
import secrets

import mcp_types as types
from content import DEFAULTS_FORM, ENUMS_FORM, USER_FORM, text
from mcp import MCPError
from mcp.shared.message import ServerMessageMetadata

_KEY = secrets.token_bytes(32)


def _form(message: str, **properties: str) -> dict:
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in properties.items()},
        "required": list(properties),
    }
    return {"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema": schema}}


def _sample(words: str, tokens: int) -> dict:
    messages = [{"role": "user", "content": text(words)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": tokens}}


NAME = _form("What is your name?", name="string")
ROOTS = {"method": "roots/list", "params": {}}
CONFIRM = {"confirm": _form("Please confirm", ok="boolean")}
# What each tool asks for, round by round.
ROUNDS = {
    "test_input_required_result_elicitation": [{"user_name": NAME}],
    "test_input_required_result_sampling": [{"capital_question": _sample("What is the capital of France?", 100)}],
    "test_input_required_result_list_roots": [{"client_roots": ROOTS}],
    "test_input_required_result_request_state": [CONFIRM],
    "test_input_required_result_tampered_state": [CONFIRM],
    "test_input_required_result_multiple_inputs": [
        {"user_name": NAME, "greeting": _sample("Generate a greeting", 50), "client_roots": ROOTS}
    ],
    "test_input_required_result_multi_round": [
        {"step1": _form("Step 1: What is your name?", name="string")},
        {"step2": _form("Step 2: What is your favorite color?", color="string")},
    ],
    "test_input_required_result_capabilities": [
        {"name": NAME, "question": _sample("What is the capital of France?", 100), "roots": ROOTS}
    ],
    "test_streaming_elicitation": [{"user_name": NAME}],
    "confirm_delete": [{"confirm": _form("Delete it?", confirm="boolean")}],
    "multi_input": [{"name": NAME, "colour": _form("What is your favorite color?", color="string")}],
    "test_input_required_result_prompt": [
        {"user_context": _form("What context should the prompt use?", context="string")}
    ],
}
# The others answer from what they are told alone: a retry may reach any process.
_STATEFUL = frozenset(
    {
        "test_input_required_result_request_state",
        "test_input_required_result_tampered_state",
        "test_input_required_result_multiple_inputs",
        "test_input_required_result_multi_round",
    }
)
_CAPABILITY = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}


def ask_or_finish(name: str, capabilities: types.ClientCapabilities | None, params: object) -> dict | str:
    """The next question of a tool or prompt, or, when all of its rounds are answered, a sentence about the answers."""
    state = getattr(params, "request_state", None)
    answers = getattr(params, "input_responses", None) or {}
    number = 0 if state is None else _opened(name, state)
    if name == "test_input_required_result_capabilities":
        asked = {
            key: each
            for key, each in ROUNDS[name][0].items()
            if capabilities is not None and getattr(capabilities, _CAPABILITY[each["method"]]) is not None
        }
    else:
        asked = ROUNDS[name][number]
    if not asked or (answers.keys() >= asked.keys() and (state is not None or name not in _STATEFUL)):
        number += 1
        if number >= len(ROUNDS[name]):
            return f"state-ok {name}: {_said(answers)}" if state is not None else _said(answers)
        asked = ROUNDS[name][number]
    question = {"resultType": "input_required", "inputRequests": asked}
    return {**question, "requestState": _sealed(name, number)} if name in _STATEFUL else question


def _said(answers: dict) -> str:
    """What the client answered. Names are greeted, as the scenarios have it."""
    plain = {key: each.model_dump(by_alias=True, exclude_none=True, mode="json") for key, each in answers.items()}
    name = (plain.get("user_name", {}).get("content") or {}).get("name")
    return f"Hello, {name}!" if name else str(plain)


def _sealed(name: str, number: int) -> str:
    words = f"{name}.{number}"
    return f"{words}.{hmac.new(_KEY, words.encode(), hashlib.sha256).hexdigest()}"


def _opened(name: str, state: str) -> int:
    words, _, _ = state.rpartition(".")
    found, _, number = words.partition(".")
    if found != name or not number.isdigit() or not hmac.compare_digest(_sealed(name, int(number)), state):
        raise MCPError(types.INVALID_PARAMS, "the request state is not one that this process gave for this tool")
    return int(number)


async def _elicit(ctx: object, message: str, schema: dict) -> str:
    found = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
    return f"action={found.action}, content={found.content or {}}"


async def sampling(ctx: object, arguments: dict) -> list[dict]:
    message = types.SamplingMessage(role="user", content=types.TextContent(text=arguments["prompt"]))
    request = types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=[message], max_tokens=100))
    metadata = ServerMessageMetadata(related_request_id=ctx.request_id)
    found = await ctx.session.send_request(request, types.CreateMessageResult, metadata=metadata)
    return [text(f"LLM response: {getattr(found.content, 'text', '')}")]


async def elicitation(ctx: object, arguments: dict) -> list[dict]:
    return [text(f"User response: {await _elicit(ctx, arguments['message'], USER_FORM)}")]


async def defaults(ctx: object, _arguments: dict) -> list[dict]:
    return [text(f"Elicitation completed: {await _elicit(ctx, 'Please check these', DEFAULTS_FORM)}")]


async def enums(ctx: object, _arguments: dict) -> list[dict]:
    return [text(f"Elicitation completed: {await _elicit(ctx, 'Please choose', ENUMS_FORM)}")]


MID_CALL = {
    "test_sampling": sampling,
    "test_elicitation": elicitation,
    "test_elicitation_sep1034_defaults": defaults,
    "test_elicitation_sep1330_enums": enums,
}


def needs_sampling(capabilities: types.ClientCapabilities | None) -> None:
    """Refuse a client that did not declare sampling, as the protocol wants it."""
    if capabilities is None or capabilities.sampling is None:
        raise MCPError(
            types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            "this tool needs sampling",
            {"requiredCapabilities": {"sampling": {}}},
        )
