// PostgREST as a child process behind a Unix socket. It reads the schema when it starts, and again when
// the database notifies it of a change (bootstrap.sql).
import { spawn } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { Agent, request as send } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

const BODY = ["content-length", "transfer-encoding"];
// An idle connection is given up before PostgREST does so, after 30 s: never under a request.
const agent = new Agent({ keepAlive: true, timeout: 10_000 });

// PostgREST ends with this process, also where a SIGKILL leaves no time to end it: the pipe closes then.
const WATCHED = `
  exec 3<&0
  "$0" & child=$!
  { read -r _ <&3; kill $child; } &
  wait $child; status=$?
  rm -r "$1"
  exit $status`;

// Returns a function that forwards a request: its path below /rest/v1, and the token for it. To one
// with a bad token PostgREST answers without reading the body, so it gets none.
export const startPostgrest = (settings) => {
  const folder = mkdtempSync(join(tmpdir(), "two-tower-"));
  const socketPath = join(folder, "postgrest");
  const environment = {
    PGRST_DB_URI: settings.database_url,
    PGRST_DB_SCHEMAS: "public",
    PGRST_DB_EXTRA_SEARCH_PATH: "public,extensions",
    PGRST_DB_ANON_ROLE: "anon",
    PGRST_DB_MAX_ROWS: "1000",
    PGRST_JWT_SECRET: settings.jwt_secret,
    PGRST_SERVER_UNIX_SOCKET: socketPath,
  };
  const child = spawn("/bin/sh", ["-c", WATCHED, settings.postgrest, folder], {
    env: { ...process.env, ...environment },
    stdio: ["pipe", "inherit", "inherit"],
  });
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
    const { method } = request;
    const below = path.startsWith("/") ? path : `/${path}`;
    const upstream = send({ agent, socketPath, method, path: below, headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    upstream.on("error", (error) => {
      if (response.headersSent) return response.destroy();
      const body = { code: "PGRST000", message: `PostgREST does not answer: ${error.message}`, details: null, hint: null };
      response.writeHead(503, { "Content-Type": "application/json" }).end(JSON.stringify(body));
    });
    response.on("close", () => response.writableFinished || upstream.destroy());
    if (isTokenGood) request.pipe(upstream);
    else upstream.end();
  };
};
