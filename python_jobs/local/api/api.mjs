// REST and Auth of the local stack: @supabase/lite over the stack's Postgres, with what a client of a
// real Supabase project relies on and lite 0.10 leaves out. Settings come as JSON in TWO_TOWER_API:
// {database_url, schema_url, port, publishable_key, secret_key, jwt_secret}, the first URL as role
// authenticator, the second as the owner of the schema. Prints one line when it listens.
import { serve } from "@hono/node-server";
import { App } from "@supabase/lite";
import { createPostgresConnection } from "@supabase/lite/postgres";

const settings = JSON.parse(process.env.TWO_TOWER_API);

// Clients parse ISO 8601: "2026-01-02 03:04:05+00" becomes "2026-01-02T03:04:05+00:00".
const isoTimestamp = (text) => text.replace(" ", "T").replace(/([+-]\d\d)$/, "$1:00");

// An argument of type json arrives here as text already, and must not be quoted once more.
const asJson = (value) => (typeof value === "string" ? value : JSON.stringify(value));

const connection = createPostgresConnection({
  url: settings.database_url,
  postgresOptions: {
    max: 10,
    onnotice: () => {},
    types: {
      timestamptz: { to: 1184, from: [1184], serialize: (text) => text, parse: isoTimestamp },
      json: { to: 114, from: [114], serialize: asJson, parse: JSON.parse },
      jsonb: { to: 3802, from: [3802], serialize: asJson, parse: JSON.parse },
      timestamp: { to: 1114, from: [1114], serialize: (text) => text, parse: isoTimestamp },
    },
  },
});

// Left alone, the first request would grant every table to every API role.
connection.rlsState = "active";

// The authenticator itself sees no table in information_schema: the owner reads the schema, once.
const owner = createPostgresConnection({ url: settings.schema_url });
const schema = await owner.introspect();
await owner.close();
connection.introspect = async () => schema;

// PostgREST applies the time-out of the role that it takes on; SET ROLE alone does not.
const [{ timeout }] = await connection.driver`
  select coalesce((
    select split_part(setting, '=', 2)
    from pg_catalog.pg_roles cross join unnest(rolconfig) as setting
    where rolname = 'anon' and setting like 'statement_timeout=%'
  ), '0') as timeout`;
const applyContext = connection.applyJwtSessionContext.bind(connection);
connection.applyJwtSessionContext = async (transaction, vars, switchRole) => {
  await applyContext(transaction, vars, switchRole);
  if ((vars.auth?.role ?? "anon") !== "anon") return;
  const compiled = { sql: `set local statement_timeout = '${timeout}'`, parameters: [], query: { kind: "RawNode" } };
  await transaction.executeQuery(compiled);
};

// SQLSTATEs that lite would hide behind "SUP" reach the client as PostgREST reports them: with code,
// detail and hint. Lite's own channel for that is an error with the code "PGRST".
const httpStatus = (code) => {
  if (["23503", "23505"].includes(code)) return 409;
  if (code === "25006") return 405;
  if (code === "P0001") return 400;
  if (code.startsWith("53")) return 503;
  if (/^(0L|0P|28)/.test(code)) return 403;
  return /^(09|25|2D|38|39|3B|40|54|55|57|58|F0|HV|P0|XX)/.test(code) ? 500 : 400;
};
const normalizeError = connection.normalizeDbError.bind(connection);
connection.normalizeDbError = (problem) => {
  const error = normalizeError(problem);
  const { code, message, detail = null, hint = null } = error ?? {};
  // Lite answers classes 42 (it knows the caller's role) and PT (the status is in the code) well.
  if (!/^[0-9A-Z]{5}$/.test(code ?? "") || /^(42|PT|PGRST)/.test(code)) return error;
  return Object.assign(new Error(JSON.stringify({ code, message, details: detail, hint })), {
    code: "PGRST",
    detail: JSON.stringify({ status: httpStatus(code), headers: {} }),
  });
};

// pgvector reads '[1,2]': a JSON array of numbers bound for a vector goes in as that text.
const rows = await connection.driver`
  select 'rpc/' || p.proname as target, p.proargnames[a.position] as name
  from pg_catalog.pg_proc p
  cross join unnest(p.proargtypes::oid[]) with ordinality as a (type, position)
  where p.pronamespace = 'public'::regnamespace
    and ltrim(a.type::regtype::text, '_') ~ '(vector|halfvec)(\\[\\])?$'
  union all
  select c.relname, a.attname
  from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid
  where c.relnamespace = 'public'::regnamespace and a.attnum > 0
    and a.atttypid::regtype::text ~ '(vector|halfvec)$'`;
const vectorNames = Map.groupBy(rows, (row) => row.target);
const asVector = (value) => {
  if (!Array.isArray(value)) return value;
  return value.every((item) => typeof item === "number") ? JSON.stringify(value) : value.map(asVector);
};
const withVectors = async (request) => {
  const target = new URL(request.url).pathname.replace(/^\/rest\/v1\//, "");
  const names = vectorNames.get(target)?.map((row) => row.name);
  if (!names || !request.body || !request.headers.get("content-type")?.includes("json")) return request;
  let text = await request.text();
  try {
    const body = JSON.parse(text);
    for (const row of [body].flat()) {
      for (const name of names) if (row?.[name] !== undefined) row[name] = asVector(row[name]);
    }
    text = JSON.stringify(body);
  } catch {
    // Malformed JSON goes on as it came, to be refused with the usual message.
  }
  return new Request(request, { body: text });
};

const app = new App({
  connection,
  // A request without a key must be refused, not served as service_role.
  options: { server: { admin: false, disableStudio: true } },
  db: { migrations: { enabled: false } },
  auth: {
    enabled: true,
    jwt_secret: settings.jwt_secret,
    publishable_key: settings.publishable_key,
    secret_key: settings.secret_key,
    email: { enable_signup: true, enable_confirmations: false },
  },
});
await app.init();

serve(
  {
    hostname: "127.0.0.1",
    port: settings.port,
    fetch: async (request, env) => {
      const { pathname } = new URL(request.url);
      // /_system would show the database password.
      if (!/^\/(rest|auth)\/v1(\/|$)/.test(pathname)) return new Response("not found", { status: 404 });
      const peerAddress = env.incoming.socket.remoteAddress ?? null;
      return app.fetch(pathname.startsWith("/rest/") ? await withVectors(request) : request, { peerAddress });
    },
  },
  ({ port }) => console.log(`listening on ${port}`),
);
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(0));
