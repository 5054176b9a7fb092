// Who calls. PostgREST checks the signature of a token: here it is only read, and handed on.
import { decodeBase64Url } from "./base64.ts";
import { Refusal } from "./http.ts";

export type Caller = { token: string; userId: string };

// The signed-in user whose token a request carries. Raises 401 without one, and for an expired one.
export function requireUser(request: Request): Caller {
  const token = bearer(request);
  if (!token || token.startsWith("sb_")) {
    throw unauthorized("no_token", "The request carries no user's token");
  }
  const claims = read(token);
  if (!claims) throw unauthorized("bad_token", "The token is malformed");
  if (typeof claims.sub !== "string") {
    throw unauthorized("no_user", "The token is no user's");
  }
  if (typeof claims.exp === "number" && claims.exp * 1000 < Date.now() - 30_000) {
    throw unauthorized("expired_token", "The token has expired");
  }
  return { token, userId: claims.sub };
}

export function bearer(request: Request): string | undefined {
  return request.headers.get("Authorization")?.match(/^Bearer\s+(\S+)$/i)?.[1];
}

export function unauthorized(code: string, message: string): Refusal {
  const hint = "Sign in, and send the session's access token: Authorization: Bearer <token>.";
  return new Refusal(401, code, message, hint, { "WWW-Authenticate": "Bearer" });
}

function read(token: string): Record<string, unknown> | undefined {
  const payload = token.match(/^[\w-]+\.([\w-]+)\.[\w-]+$/)?.[1];
  if (!payload) return undefined;
  try {
    const claims = JSON.parse(new TextDecoder().decode(decodeBase64Url(payload)));
    return typeof claims === "object" && claims !== null ? claims : undefined;
  } catch {
    return undefined;
  }
}
