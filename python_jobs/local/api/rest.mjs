// PostgREST as a child process behind a Unix socket. It reads the schema when it starts, and again when
// the database notifies it of a change (bootstrap.sql).
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createAgent, forward, startChild } from "./child.mjs";

const BODY = ["content-length", "transfer-encoding"];

// Returns a function that forwards a request: its path below /rest/v1, and the token for it. To one
// with a bad token PostgREST answers without reading the body, so it gets none.
export const startPostgrest = (settings) => {
  const folder = mkdtempSync(join(tmpdir(), "two-tower-"));
  const socketPath = join(folder, "postgrest");
  const agent = createAgent();
  const environment = {
    PGRST_DB_URI: settings.database_url,
    PGRST_DB_SCHEMAS: "public",
    PGRST_DB_EXTRA_SEARCH_PATH: "public,extensions",
    PGRST_DB_ANON_ROLE: "anon",
    PGRST_DB_MAX_ROWS: "1000",
    PGRST_JWT_SECRET: settings.jwt_secret,
    PGRST_SERVER_UNIX_SOCKET: socketPath,
  };
  const child = startChild([settings.postgrest], { ...process.env, ...environment }, folder);
  const fail = (reason) => {
    console.error(`Error: PostgREST ended (${reason})`);
    process.exit(1);
  };
  child.on("error", (error) => fail(error.message));
  child.on("exit", (code, signal) => fail(signal ?? code));

  return (request, response, path, token, isTokenGood) => {
    const headers = { ...request.headers, authorization: `Bearer ${token}` };
    // The gateway has answered for the key and the origin.
    for (const name of ["apikey", "origin", "connection", ...(isTokenGood ? [] : BODY)]) delete headers[name];
    const failed = (error) => {
      const body = { code: "PGRST000", message: `PostgREST does not answer: ${error.message}`, details: null, hint: null };
      response.writeHead(503, { "Content-Type": "application/json" }).end(JSON.stringify(body));
    };
    const below = path.startsWith("/") ? path : `/${path}`;
    forward(request, response, { agent, socketPath, path: below, headers, hasBody: isTokenGood, failed });
  };
};
