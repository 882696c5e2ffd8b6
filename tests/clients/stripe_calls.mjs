// Stripe's Node SDK as a user would use it. Reads {url, calls: [...], together} from stdin and
// prints one outcome a call: {id, replayed} or {error, code, status}.
import Stripe from "stripe";
import { text } from "node:stream/consumers";

const { url, calls, together } = JSON.parse(await text(process.stdin));
const { hostname, port } = new URL(url);

async function make({ key, params, options, retries, raw }) {
  const stripe = new Stripe(key, {
    host: hostname,
    port: Number(port),
    protocol: "http",
    maxNetworkRetries: retries ?? 0,
    telemetry: false,
  });
  try {
    const made = raw
      ? await stripe.rawRequest(...raw)
      : await stripe.charges.create(params, options ?? {});
    return { id: made.id, replayed: made.lastResponse.headers["idempotent-replayed"] ?? null };
  } catch (error) {
    // As in Python, the SDK drops the code of some errors: the body has it.
    const code = error.raw?.code ?? error.code ?? null;
    return { error: error.constructor.name, code, status: error.statusCode ?? null };
  }
}

const outcomes = [];
if (together) {
  outcomes.push(...(await Promise.all(calls.map(make))));
} else {
  for (const call of calls) outcomes.push(await make(call));
}
console.log(JSON.stringify(outcomes));
