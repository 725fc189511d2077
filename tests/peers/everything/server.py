"""An MCP server with everything that the conformance suite looks for, on the `mcp` SDK: 2026-07-28 and 2025-11-25.

usage: server.py [--http PORT]      stdio, or http://127.0.0.1:PORT/mcp without any authorization (for direct runs alone)

`content` is what it offers, `asking` what it wants of its client; here are the protocol's methods. It runs unchanged in a
box, where the SDK is the image's own, so it imports nothing of ours.
"""

import argparse
import logging
import warnings

import anyio
import mcp_types as types
from asking import MID_CALL, ROUNDS, ask_or_finish, needs_sampling
from content import ANSWERS, INPUT_SCHEMAS, PROMPTS, RESOURCES, STATIC, TEMPLATES, messages, template, text
from mcp import MCPError
from mcp.server.caching import CacheHint
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, PromptsListChanged, ToolsListChanged

bus = InMemorySubscriptionBus()


async def log(ctx, words: str) -> None:
    with warnings.catch_warnings(action="ignore"):  # logging is deprecated, which is no reason to leave it untested
        await ctx.session.send_log_message("info", words, related_request_id=ctx.request_id)


async def with_logging(ctx, _arguments: dict) -> list[dict]:
    for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await log(ctx, words)
        await anyio.sleep(0.05)
    return [text("Tool with logging executed")]


async def with_progress(ctx, _arguments: dict) -> list[dict]:
    for step in (0, 50, 100):
        await ctx.session.report_progress(step, 100, f"Completed step {step} of 100")
        await anyio.sleep(0.05)
    return [text("Tool with progress executed")]


async def reconnection(ctx, _arguments: dict) -> list[dict]:
    """Close the response's stream in mid-call; the answer waits for whoever resumes it."""
    if ctx.close_sse_stream is not None:
        await ctx.close_sse_stream()
        await anyio.sleep(0.2)
    return [text("Reconnection test completed")]


async def tool_change(_ctx, _arguments: dict) -> list[dict]:
    await bus.publish(ToolsListChanged())
    return [text("told those who listen for tools")]


async def prompt_change(_ctx, _arguments: dict) -> list[dict]:
    await bus.publish(PromptsListChanged())
    return [text("told those who listen for prompts")]


async def greet(_ctx, arguments: dict) -> list[dict]:
    return [text(f"Hello, {arguments['name']}!")]


async def slow_compute(_ctx, arguments: dict) -> list[dict]:
    await anyio.sleep(arguments["seconds"])
    return [text(f"computed for {arguments['seconds']} s")]


async def failing(_ctx, _arguments: dict) -> list[dict]:
    raise RuntimeError("This tool intentionally returns an error for testing")


async def missing_capability(ctx, _arguments: dict) -> list[dict]:
    needs_sampling(ctx.session.client_capabilities)
    return [text("the client has what this tool needs")]


RUNNING = {
    "test_tool_with_logging": with_logging,
    "test_tool_with_progress": with_progress,
    "test_reconnection": reconnection,
    "test_trigger_tool_change": tool_change,
    "test_trigger_prompt_change": prompt_change,
    "greet": greet,
    "slow_compute": slow_compute,
    "test_error_handling": failing,
    "test_missing_capability": missing_capability,
    **MID_CALL,
}
ASKING = [name for name in ROUNDS if name not in {each["name"] for each in PROMPTS}]
TOOLS = [
    {"name": name, "description": name.replace("_", " "), "inputSchema": INPUT_SCHEMAS.get(name, {"type": "object"})}
    for name in (*ANSWERS, *RUNNING, *ASKING)
]


async def call_tool(ctx, params: types.CallToolRequestParams) -> dict:
    name, arguments = params.name, params.arguments or {}
    if name == "test_logging_tool":
        await log(ctx, "a message for those who asked for it")
    if name in ANSWERS:
        return {"content": ANSWERS[name], "resultType": "complete"}
    if name in ROUNDS:
        found = ask_or_finish(name, ctx.session.client_capabilities, params)
        return found if isinstance(found, dict) else {"content": [text(found)], "resultType": "complete"}
    if name not in RUNNING:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {name}")
    try:
        return {"content": await RUNNING[name](ctx, arguments), "resultType": "complete"}
    except MCPError:
        raise
    except Exception as error:  # noqa: BLE001 - a tool's fault is its result
        return {"content": [text(str(error))], "isError": True, "resultType": "complete"}


async def list_tools(_ctx, _params) -> dict:
    return {"tools": TOOLS, "resultType": "complete"}


async def list_resources(_ctx, _params) -> dict:
    return {"resources": RESOURCES, "resultType": "complete"}


async def list_templates(_ctx, _params) -> dict:
    return {"resourceTemplates": TEMPLATES, "resultType": "complete"}


async def read_resource(_ctx, params: types.ReadResourceRequestParams) -> dict:
    uri = str(params.uri)
    found = STATIC.get(uri) or template(uri)
    if found is None:
        raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
    return {"contents": [{"uri": uri, **found}], "resultType": "complete"}


async def acknowledge(_ctx, _params) -> dict:
    return {}


async def list_prompts(_ctx, _params) -> dict:
    return {"prompts": PROMPTS, "resultType": "complete"}


async def get_prompt(ctx, params: types.GetPromptRequestParams) -> dict:
    if params.name in ROUNDS:
        found = ask_or_finish(params.name, ctx.session.client_capabilities, params)
        if isinstance(found, dict):
            return found
        return {"messages": [{"role": "user", "content": text(found)}], "resultType": "complete"}
    try:
        return {"messages": messages(params.name, params.arguments or {}), "resultType": "complete"}
    except KeyError as error:
        raise MCPError(types.INVALID_PARAMS, f"Unknown prompt, or an argument is missing: {error}") from error


async def complete(_ctx, params: types.CompleteRequestParams) -> dict:
    words = [word for word in ("paris", "park", "party") if word.startswith(params.argument.value)]
    return {"completion": {"values": words, "total": len(words), "hasMore": False}, "resultType": "complete"}


def make() -> Server:
    hint = CacheHint(ttl_ms=1000, scope="public")
    methods = ("tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read")
    with warnings.catch_warnings(action="ignore"):
        return Server(
            "everything-for-conformance",
            version="1",
            cache_hints=dict.fromkeys(methods, hint),
            get_tool_input_schema={tool["name"]: tool["inputSchema"] for tool in TOOLS}.get,
            on_list_tools=list_tools,
            on_call_tool=call_tool,
            on_list_resources=list_resources,
            on_list_resource_templates=list_templates,
            on_read_resource=read_resource,
            on_subscribe_resource=acknowledge,
            on_unsubscribe_resource=acknowledge,
            on_subscriptions_listen=ListenHandler(bus),
            on_list_prompts=list_prompts,
            on_get_prompt=get_prompt,
            on_completion=complete,
            on_set_logging_level=acknowledge,
        )


async def on_stdio() -> None:
    from mcp.server.stdio import stdio_server

    server = make()
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


def on_http(port: int) -> None:
    import uvicorn
    from events import Events

    app = make().streamable_http_app(event_store=Events(), retry_interval=100)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def main() -> None:
    parser = argparse.ArgumentParser(prog="server.py")
    parser.add_argument("--http", type=int, metavar="PORT")
    port = parser.parse_args().http
    logging.disable(logging.WARNING)
    if port is None:
        anyio.run(on_stdio)
    else:
        on_http(port)


if __name__ == "__main__":
    main()
