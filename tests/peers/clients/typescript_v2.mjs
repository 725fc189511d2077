// The client of `@modelcontextprotocol/client`, the 2.x line: 2026-07-28, and older by its own choice.
import { createRequire } from "node:module";

const require = createRequire(`${process.env.FUMEHOOD_PEERS_FOLDER}/package.json`);
const { Client, StreamableHTTPClientTransport } = require("@modelcontextprotocol/client");
const { StdioClientTransport } = require("@modelcontextprotocol/client/stdio");

const given = JSON.parse(process.argv[2]);
const transport = given.url
  ? new StreamableHTTPClientTransport(new URL(given.url), { requestInit: { headers: given.headers } })
  : new StdioClientTransport({ command: given.command[0], args: given.command.slice(1), env: given.env });
const client = new Client({ name: "typescript-v2", version: "1" }, { versionNegotiation: { mode: given.mode } });
await client.connect(transport);
const { tools } = await client.listTools();
const found = await client.callTool({ name: given.tool, arguments: given.arguments });
const refused = await client.callTool({ name: given.tool, arguments: { ...given.arguments, "no such": 1 } });
console.log(
  JSON.stringify({
    version: client.getNegotiatedProtocolVersion() ?? null,
    tools: tools.map((tool) => tool.name),
    answer: found.structuredContent,
    refused: refused.isError === true ? refused.content[0].text : null,
    task: found._meta["fumehood/task"],
  }),
);
await client.close();
