"""Front door 2: how an MCP server hands over a single tool's work, which then runs in a box of its own.

`signatures` (pure: which types can travel) and `source` (what of the host the box sees) judge a function when it is
decorated; `boxed` is the decorator; `function` the work, a conversation with `runner`, which is the one file here that runs inside
the box; `embedding` makes the server's own process the worker, `runtime` is what its author holds. Like every front door it
makes a `ToolCall` and a `Work` and calls `run_call`.
"""
