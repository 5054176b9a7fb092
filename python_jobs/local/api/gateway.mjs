// What stands before REST and Auth in a Supabase project: browsers of other origins, and API keys.
import { SignJWT, jwtVerify } from "jose";

const METHODS = "GET,HEAD,PUT,PATCH,POST,DELETE,OPTIONS";
const EXPOSED =
  "Content-Location,Content-Range,Content-Type,Link,Location,Preference-Applied,Range-Unit,X-Sb-Error-Code,X-Total-Count";

export class Gateway {
  constructor(settings) {
    this.settings = settings;
    this.secret = new TextEncoder().encode(settings.jwt_secret);
  }

  // Lets pages of any origin read every answer, refusals too. True when the request was a preflight,
  // which is answered here: it carries no key and reaches no service.
  answersForeignOrigin(request, response) {
    response.setHeader("Access-Control-Allow-Origin", "*");
    response.setHeader("Access-Control-Expose-Headers", EXPOSED);
    const { "access-control-request-method": method, "access-control-request-headers": names } = request.headers;
    if (request.method !== "OPTIONS" || !method) return false;
    const allowed = { "Access-Control-Allow-Methods": METHODS, "Access-Control-Max-Age": "3600" };
    if (names) allowed["Access-Control-Allow-Headers"] = names;
    response.writeHead(200, { ...allowed, "Content-Length": "0" }).end();
    return true;
  }

  // The token that the services get for a request: the user's own, else one with the role of the API
  // key. Undefined where the key is missing or wrong: then the refusal is sent.
  async token(request, response) {
    const { apikey, authorization = "", "user-agent": agent = "" } = request.headers;
    const { publishable_key, secret_key } = this.settings;
    if (!apikey) {
      return this.refuse(response, 401, { message: "No API key found in request", hint: "No `apikey` request header was found." });
    }
    const role = { [publishable_key]: "anon", [secret_key]: "service_role" }[apikey];
    if (!role) {
      return this.refuse(response, 401, { message: "Invalid API key", hint: "Compare it with the keys that `two-tower up` prints." });
    }
    if (role === "service_role" && agent.startsWith("Mozilla/")) {
      return this.refuse(response, 401, {
        message: "Forbidden use of secret API key in browser",
        hint: "Whoever opens the page can read the key: use the anon key there.",
      });
    }
    const bearer = authorization.replace(/^Bearer\s+/i, "");
    return bearer && !bearer.startsWith("sb_") ? bearer : this.sign({ role });
  }

  sign(claims) {
    return new SignJWT(claims).setProtectedHeader({ alg: "HS256", typ: "JWT" }).sign(this.secret);
  }

  // The claims of a token; null for one that is forged, malformed or expired.
  async claims(token) {
    const verified = await jwtVerify(token, this.secret, { algorithms: ["HS256"] }).catch(() => null);
    return verified?.payload ?? null;
  }

  refuse(response, status, body) {
    response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
  }
}
