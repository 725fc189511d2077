"""Front door 1: an MCP server on stdio in front of upstream MCP servers, each call of a tool in a box of its own.

`stdio` moves bounded lines, `strict_json` and `frames` parse them (pure), `adapter` lets the mcp SDK speak the eras of
the protocol, `front` decides what a request becomes, `catalogue` and `schema` hold what the server said it can do, and
`exchange` talks with the server inside a box. Nothing here runs a tool: that is `call.run_call`.
"""
