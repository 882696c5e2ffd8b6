// MCP clients for Node, each as its own documentation shows it: `node_clients.mjs NAME`.
// Run in the folder where that client is installed. The steps are those of steps.py.
import { createInterface } from "node:readline";

const at = JSON.parse(process.env.CASE);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const entry = at.url
  ? { url: at.url, headers: at.headers }
  : { command: at.command, args: at.args, env: at.env };

async function done(step, said) {
  process.stdout.write(JSON.stringify({ step, said: JSON.stringify(said).slice(0, 600) }) + "\n");
  await lines.next();
}

async function makeSteps(names, call) {
  const { customer_id, billing_period } = at.bill;
  const listed = await names();
  await done("list", listed);
  const [charge, status] = ["charge", "status"].map((end) => listed.find((n) => n.endsWith(end)));
  await done("charge", await call(charge, at.bill));
  await done("again", await call(charge, at.bill));
  await done("status", await call(status, { customer_id, billing_period }));
}

const clients = {
  async typescript_sdk() {
    const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
    const { StdioClientTransport } = await import("@modelcontextprotocol/sdk/client/stdio.js");
    const { StreamableHTTPClientTransport } = await import(
      "@modelcontextprotocol/sdk/client/streamableHttp.js"
    );
    const transport = at.url
      ? new StreamableHTTPClientTransport(new URL(at.url), { requestInit: { headers: at.headers } })
      : new StdioClientTransport(entry);
    const client = new Client({ name: "test", version: "1" });
    await client.connect(transport);
    await makeSteps(
      async () => (await client.listTools()).tools.map((tool) => tool.name),
      async (name, args) =>
        (await client.callTool({ name, arguments: args })).structuredContent,
    );
    await client.close();
  },

  async ai_sdk() {
    const { createMCPClient } = await import("@ai-sdk/mcp");
    const { Experimental_StdioMCPTransport: Stdio } = await import("@ai-sdk/mcp/mcp-stdio");
    const transport = at.url ? { type: "http", ...entry } : new Stdio(entry);
    const client = await createMCPClient({ transport });
    const tools = await client.tools();
    await makeSteps(
      async () => Object.keys(tools),
      (name, args) => tools[name].execute(args, { toolCallId: "call_1", messages: [] }),
    );
    await client.close();
  },

  async langchain_js() {
    const { MultiServerMCPClient } = await import("@langchain/mcp-adapters");
    const transport = at.url ? "http" : "stdio";
    const client = new MultiServerMCPClient({ mcpServers: { "kb-mcp": { transport, ...entry } } });
    const tools = await client.getTools();
    await makeSteps(
      async () => tools.map((tool) => tool.name),
      (name, args) => tools.find((tool) => tool.name === name).invoke(args),
    );
    await client.close();
  },

  async mastra() {
    const { MCPClient } = await import("@mastra/mcp");
    const server = at.url
      ? { url: new URL(at.url), requestInit: { headers: at.headers } }
      : entry;
    const client = new MCPClient({ servers: { billing: server } });
    const tools = await client.listTools();
    await makeSteps(
      async () => Object.keys(tools),
      (name, args) => tools[name].execute(args),
    );
    await client.disconnect();
  },

  async stripe_node() {
    const { default: Stripe } = await import("stripe");
    const { hostname, port } = new URL(at.url);
    const stripe = new Stripe(at.headers.Authorization.split(" ")[1], {
      host: hostname,
      port: Number(port),
      protocol: "http",
    });
    const bill = {
      amount: at.bill.amount_cents,
      currency: "usd",
      customer: at.bill.customer_id,
      metadata: { billing_period: at.bill.billing_period },
    };
    const charge = await stripe.charges.create(bill);
    await done("charge", charge.id);
    await done("again", (await stripe.charges.create(bill)).id);
    await done("status", (await stripe.charges.retrieve(charge.id)).status);
  },
};

await clients[process.argv[2]]();
process.exit(0);
