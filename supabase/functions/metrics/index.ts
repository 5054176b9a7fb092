// What two_tower.health says, for Prometheus: see docs/functions.md.
import { bearer } from "../_shared/auth.ts";
import { serviceKey, setting } from "../_shared/environment.ts";
import { answer, Refusal, Unavailable } from "../_shared/http.ts";
import { rpc } from "../_shared/rpc.ts";
import { type Family, write } from "./prometheus.ts";

const SHORTEST_SECRET = 16;
const STATES = ["ok", "warning", "alert"];

async function metrics(request: Request): Promise<Response> {
  await requireSecret(request);
  const figures = await rpc("read_metrics", {}, { apikey: serviceKey() });
  const families: Family[] = figures.filter(({ value }) => value !== null).map((figure) => ({
    name: `two_tower_${figure.name}`,
    help: figure.description,
    samples: [{ value: figure.value! }],
  }));
  families.push({
    name: "two_tower_metric_state",
    help: "State of a metric against its ranges: 0 ok, 1 warning, 2 alert, NaN not yet measured.",
    samples: figures.map(({ name, state }) => {
      const place = STATES.indexOf(state);
      return { labels: { metric: name }, value: place < 0 ? NaN : place };
    }),
  }, {
    name: "two_tower_metric_limit",
    help: "Ends of the range in which a metric should be (target), and out of which it alerts.",
    samples: figures.flatMap((figure) =>
      (["target_low", "target_high", "alert_low", "alert_high"] as const)
        .filter((limit) => figure[limit] !== null)
        .map((limit) => ({ labels: { metric: figure.name, limit }, value: figure[limit]! }))
    ),
  });
  return new Response(write(families), {
    headers: { "Content-Type": "text/plain; version=0.0.4; charset=utf-8" },
  });
}

// Digests are compared, of one length: how long it takes tells nothing of the secret.
async function requireSecret(request: Request): Promise<void> {
  const secret = setting("METRICS_SECRET");
  if (!secret || secret.length < SHORTEST_SECRET) {
    throw new Unavailable(
      "no_secret",
      `METRICS_SECRET is not set, or shorter than ${SHORTEST_SECRET} characters`,
      "supabase secrets set METRICS_SECRET=$(openssl rand -hex 32)",
    );
  }
  const [sent, expected] = await Promise.all([bearer(request) ?? "", secret].map(digest));
  let difference = 0;
  expected!.forEach((byte, place) => difference |= byte ^ sent![place]!);
  if (difference !== 0) {
    const hint = "Send Authorization: Bearer <METRICS_SECRET>.";
    throw new Refusal(401, "bad_secret", "The secret is missing or wrong", hint, {
      "WWW-Authenticate": "Bearer",
    });
  }
}

async function digest(text: string): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
}

Deno.serve(answer({ GET: metrics }));
