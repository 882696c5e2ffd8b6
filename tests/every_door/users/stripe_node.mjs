// Stripe's Node SDK, with the key and the address changed and nothing else.
import Stripe from "stripe";
import { createInterface } from "node:readline";

const { hostname, port } = new URL(process.env.STRIPE_API_BASE);
const stripe = new Stripe(process.env.STRIPE_SECRET_KEY, {
  host: hostname,
  port: Number(port),
  protocol: "http",
});

console.log("ready");
for await (const line of createInterface({ input: process.stdin })) {
  const bill = JSON.parse(line);
  const made = await stripe.charges.create({
    amount: bill.amount_cents,
    currency: "usd",
    customer: bill.customer_id,
    description: `Subscription ${bill.billing_period}`,
    metadata: { billing_period: bill.billing_period },
  });
  console.log(JSON.stringify({ status: made.status, charge_id: made.id }));
}
