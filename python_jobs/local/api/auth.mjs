// /auth/v1: @supabase/lite, with what a Supabase project has and lite 0.10 leaves out.
import { getRequestListener } from "@hono/node-server";
import { App } from "@supabase/lite";
import { createPostgresConnection } from "@supabase/lite/postgres";
import { decodeJwt } from "jose";
import { createAdmin } from "./admin.mjs";

// Clients parse ISO 8601: "2026-01-02 03:04:05+00" becomes "2026-01-02T03:04:05+00:00".
const isoTimestamp = (text) => text.replace(" ", "T").replace(/([+-]\d\d)$/, "$1:00");
const asTimestamp = (oid) => ({ to: oid, from: [oid], serialize: (text) => text, parse: isoTimestamp });
// Lite hands JSON over as text, which must not be quoted once more.
const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const asJson = (oid) => ({ to: oid, from: [oid], serialize: asText, parse: JSON.parse });

const UNKNOWN = {
  code: 404,
  error_code: "not_implemented",
  msg: "The local stack has none of this. Use supabase start.",
};

export const createAuth = async (settings, gateway) => {
  const connection = createPostgresConnection({
    url: settings.database_url,
    postgresOptions: {
      max: 5,
      onnotice: () => {},
      types: { timestamptz: asTimestamp(1184), timestamp: asTimestamp(1114), json: asJson(114), jsonb: asJson(3802) },
    },
  });
  // Left alone, the first request would grant every table to every API role.
  connection.rlsState = "active";
  const app = new App({
    connection,
    options: { server: { admin: false, disableStudio: true } },
    api: { enabled: false },
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
  const admin = createAdmin(connection.driver);

  // Policies read more of a token than lite puts into it: app_metadata, above all. What lite does not
  // know it refuses as text, which clients take for JSON.
  const mend = async (answer) => {
    const isJson = answer.headers.get("content-type")?.includes("json");
    if (answer.status === 404 && !isJson) return Response.json(UNKNOWN, { status: 404 });
    if (!answer.ok || !isJson) return answer;
    const session = await answer.json();
    if (session.access_token) {
      const { app_metadata, user_metadata, phone, is_anonymous } = session.user;
      session.access_token = await gateway.sign({
        ...decodeJwt(session.access_token),
        iss: `http://127.0.0.1:${settings.port}/auth/v1`,
        aal: "aal1",
        ...{ app_metadata, user_metadata, phone, is_anonymous },
      });
    }
    answer.headers.delete("content-length");
    return Response.json(session, { status: answer.status, headers: answer.headers });
  };

  const users = getRequestListener(async (request, { incoming }) =>
    mend(await app.fetch(request, { peerAddress: incoming.socket.remoteAddress ?? null })),
  );
  const administration = getRequestListener((request) => admin(request));
  return async (request, response) => {
    if (!/^\/auth\/v1\/(admin\/|invite\b)/.test(request.url)) return users(request, response);
    const token = await gateway.token(request, response);
    if (!token) return;
    if ((await gateway.claims(token))?.role === "service_role") return administration(request, response);
    gateway.refuse(response, 403, { code: 403, error_code: "not_admin", msg: "User not allowed" });
  };
};
