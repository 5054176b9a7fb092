// /functions/v1: the project's edge functions, each in a Deno of its own that starts with its first request.
import { existsSync, mkdtempSync, readFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseEnv } from "node:util";
import { createAgent, forward, startChild } from "./child.mjs";

const CORS = {
  "Access-Control-Allow-Origin": "*",
  "Access-Control-Allow-Headers": "authorization, x-client-info, apikey",
  "Access-Control-Expose-Headers": "sb-error-code",
};
const NAME = /^[A-Za-z0-9][A-Za-z0-9_-]*$/;
const MISSING = {
  code: "NO_DENO",
  message: "The local stack serves no functions: Deno is missing",
  hint: "pip install deno, and start the stack again.",
};

// settings.functions: {deno: the program or null, folder, cache, configs: {name: {verify_jwt,
// entrypoint, import_map}}, environment}.
export const createFunctions = (settings, gateway) => {
  const { deno, folder, configs } = settings.functions;
  const running = new Map(); // name -> a promise of its socket
  const agent = createAgent();

  const refuse = (response, status, body) => {
    response.writeHead(status, { "Content-Type": "application/json", "sb-error-code": body.code, ...CORS });
    response.end(JSON.stringify(body));
  };
  const unauthorized = (response, code, message = "Invalid JWT") => refuse(response, 401, { code, message, msg: message });

  // As the platform does where verify_jwt is on. It is on where nothing is said.
  const isVerified = async (request, response) => {
    const { authorization, apikey } = request.headers;
    const keys = [settings.publishable_key, settings.secret_key];
    const token = authorization?.match(/^Bearer (\S+)$/)?.[1];
    if ((!token || token.startsWith("sb_")) && keys.includes(apikey)) return true;
    if (!authorization) unauthorized(response, "UNAUTHORIZED_NO_AUTH_HEADER", "Missing authorization header");
    else if (!token || token.startsWith("sb_")) unauthorized(response, "UNAUTHORIZED_INVALID_JWT_FORMAT", "Invalid JWT format");
    else if (!(await gateway.claims(token))) unauthorized(response, "UNAUTHORIZED_LEGACY_JWT");
    else return true;
    return false;
  };

  // What a hosted function finds, and what `supabase functions serve` adds from supabase/functions/.env.
  const environment = (socketPath) => {
    const secrets = join(folder, ".env");
    return {
      ...(existsSync(secrets) ? parseEnv(readFileSync(secrets, "utf8")) : {}),
      ...settings.functions.environment,
      SUPABASE_URL: `http://127.0.0.1:${settings.port}`,
      SUPABASE_ANON_KEY: settings.publishable_key,
      SUPABASE_SERVICE_ROLE_KEY: settings.secret_key,
      SUPABASE_PUBLISHABLE_KEYS: JSON.stringify({ default: settings.publishable_key }),
      SUPABASE_SECRET_KEYS: JSON.stringify({ default: settings.secret_key }),
      SUPABASE_DB_URL: settings.functions.database_url,
      PATH: process.env.PATH,
      HOME: process.env.HOME,
      DENO_DIR: settings.functions.cache,
      DENO_NO_UPDATE_CHECK: "1",
      DENO_SERVE_ADDRESS: `unix:${socketPath}`,
    };
  };

  const start = async (name, config) => {
    const own = mkdtempSync(join(tmpdir(), "two-tower-"));
    const socketPath = join(own, "function");
    const imports = config.import_map ? ["--config", join(folder, "..", config.import_map)] : [];
    const child = startChild(
      [
        ...[deno, "run", "--quiet", "--no-prompt", "--no-lock", "--allow-net", "--allow-env", "--allow-sys"],
        ...[`--allow-read=${folder},${own}`, `--allow-write=${own}`, ...imports],
        config.entrypoint ? join(folder, "..", config.entrypoint) : join(folder, name, "index.ts"),
      ],
      environment(socketPath),
      own,
    );
    child.on("exit", () => running.delete(name));
    while (child.exitCode === null && child.signalCode === null) {
      if (existsSync(socketPath) && (await answers(socketPath))) return socketPath;
      await sleep(20);
    }
    throw new Error("Function failed to start (please check logs)");
  };

  return async (request, response, path) => {
    const name = path.match(/^\/([^/?]*)/)?.[1] ?? "";
    const config = { verify_jwt: true, enabled: true, ...configs[name] };
    const isThere = NAME.test(name) && config.enabled && (config.entrypoint || existsSync(join(folder, name, "index.ts")));
    if (!isThere) return refuse(response, 404, { code: "NOT_FOUND", message: "Requested function was not found" });
    if (!deno) return refuse(response, 503, MISSING);
    if (config.verify_jwt && request.method !== "OPTIONS" && !(await isVerified(request, response))) return;
    if (!running.has(name)) running.set(name, start(name, config));
    try {
      const socketPath = await running.get(name);
      const failed = (error) => {
        console.error(`Error: function ${name} does not answer:`, error.message);
        refuse(response, 502, { code: "WORKER_ERROR", message: "Function exited due to an error (please check logs)" });
      };
      const headers = { ...request.headers, "x-forwarded-host": request.headers.host };
      delete headers.connection;
      forward(request, response, { agent, socketPath, path, headers, failed });
    } catch (error) {
      running.delete(name);
      console.error(`Error: function ${name}:`, error.message);
      refuse(response, 503, { code: "BOOT_ERROR", message: error.message });
    }
  };
};

const answers = (socketPath) =>
  new Promise((resolve) => {
    const socket = connect(socketPath, () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });
