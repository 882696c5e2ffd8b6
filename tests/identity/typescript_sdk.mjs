// The MCP SDK for TypeScript as an application uses it: it knows the address of /mcp, and how to
// send a person to a browser. `typescript_sdk.mjs PACKAGE`, in the folder where that is installed.
// Reads {url, back, client, scope, bill} from stdin: `client` is one that was registered before,
// `scope` what the application asks for at first. Prints {tools, charged, visits}.
import { text } from "node:stream/consumers";

const wanted = JSON.parse(await text(process.stdin));

async function load(name) {
  if (name === "client") return import("@modelcontextprotocol/client");
  const [{ Client }, http, { UnauthorizedError }] = await Promise.all([
    import("@modelcontextprotocol/sdk/client/index.js"),
    import("@modelcontextprotocol/sdk/client/streamableHttp.js"),
    import("@modelcontextprotocol/sdk/client/auth.js"),
  ]);
  return { Client, UnauthorizedError, ...http };
}

const { Client, StreamableHTTPClientTransport, UnauthorizedError } = await load(process.argv[2]);
const kept = { client: wanted.client, visits: [] };

const person = {
  redirectUrl: wanted.back,
  clientMetadata: {
    client_name: "a test",
    redirect_uris: [wanted.back],
    token_endpoint_auth_method: "none",
  },
  state: () => "of-this-test",
  clientInformation: () => kept.client ?? undefined,
  saveClientInformation: (made) => {
    kept.client = made;
  },
  tokens: () => kept.tokens,
  saveTokens: (tokens) => {
    kept.tokens = tokens;
  },
  codeVerifier: () => kept.verifier,
  saveCodeVerifier: (verifier) => {
    kept.verifier = verifier;
  },
  async redirectToAuthorization(address) {
    kept.visits.push(Object.fromEntries(address.searchParams));
    const answer = await fetch(address, { redirect: "manual" });
    kept.landed = new URL(answer.headers.get("location")).searchParams;
  },
};

let transport;
let client;

async function connect() {
  transport = new StreamableHTTPClientTransport(new URL(wanted.url), { authProvider: person });
  client = new Client({ name: "test", version: "1" });
  await client.connect(transport);
}

// What the SDK's documentation says to do when a person has to sign in: finish, and try again.
async function signedIn(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof UnauthorizedError)) throw error;
    if (kept.landed.get("state") !== "of-this-test") throw new Error("another's answer");
    await transport.finishAuth(kept.landed.get("code"));
    return work();
  }
}

await signedIn(connect);
const { tools } = await client.listTools();
const charged = await signedIn(() => client.callTool({ name: "charge", arguments: wanted.bill }));
await client.close();
console.log(
  JSON.stringify({
    tools: tools.map((tool) => tool.name),
    charged: charged.structuredContent,
    visits: kept.visits,
  }),
);
process.exit(0);
