// The client of `@modelcontextprotocol/sdk`, the 1.x line: 2025-11-25 and older.
import { createRequire } from "node:module";

const require = createRequire(`${process.env.FUMEHOOD_PEERS_FOLDER}/package.json`);
const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = require("@modelcontextprotocol/sdk/client/stdio.js");
const { StreamableHTTPClientTransport } = require("@modelcontextprotocol/sdk/client/streamableHttp.js");

const given = JSON.parse(process.argv[2]);
const transport = given.url
  ? new StreamableHTTPClientTransport(new URL(given.url), { requestInit: { headers: given.headers } })
  : new StdioClientTransport({ command: given.command[0], args: given.command.slice(1), env: given.env });
// The only place where this client says which revision was agreed on.
let version = null;
const set = transport.setProtocolVersion?.bind(transport);
transport.setProtocolVersion = (found) => {
  version = found;
  set?.(found);
};
const client = new Client({ name: "typescript-v1", version: "1" });
await client.connect(transport);
const { tools } = await client.listTools();
const found = await client.callTool({ name: given.tool, arguments: given.arguments });
const refused = await client.callTool({ name: given.tool, arguments: { ...given.arguments, "no such": 1 } });
console.log(
  JSON.stringify({
    version,
    tools: tools.map((tool) => tool.name),
    answer: found.structuredContent,
    refused: refused.isError === true ? refused.content[0].text : null,
    task: found._meta["fumehood/task"],
  }),
);
await client.close();
