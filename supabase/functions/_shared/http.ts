// What every function answers by: CORS, methods, and errors that say what to do.

type Handler = (request: Request) => Promise<Response>;

// What is answered instead of a result. The body is {code, message, hint}.
export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly hint: string,
    readonly headers: Record<string, string> = {},
  ) {
    super(message);
  }
}

// The caller may try again: now it does not work.
export class Unavailable extends Refusal {
  constructor(code: string, message: string, hint: string, retryAfter = 5) {
    super(503, code, message, hint, { "Retry-After": String(retryAfter) });
  }
}

const UNEXPECTED = new Refusal(
  500,
  "unexpected",
  "The function failed",
  "Look at the function's log; send the request again later.",
);
const EXPOSED = "ETag, Retry-After, Server-Timing, X-Fallback";

// A function that answers these methods, and preflights of any origin.
export function answer(handlers: Record<string, Handler>): Handler {
  const methods = [...Object.keys(handlers), "OPTIONS"].join(", ");
  return async (request) => {
    if (request.method === "OPTIONS") return preflight(request, methods);
    try {
      const handler = handlers[request.method];
      if (!handler) {
        const hint = `Send one of ${methods}.`;
        const message = `${request.method} is not answered here`;
        throw new Refusal(405, "method_not_allowed", message, hint, { "Allow": methods });
      }
      return open(await handler(request));
    } catch (error) {
      if (!(error instanceof Refusal)) console.error(error);
      return open(refuse(error instanceof Refusal ? error : UNEXPECTED));
    }
  };
}

export function json(body: unknown, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), {
    headers: { "Content-Type": "application/json", ...headers },
  });
}

function refuse({ status, code, message, hint, headers }: Refusal): Response {
  return new Response(JSON.stringify({ code, message, hint }), {
    status,
    headers: { "Content-Type": "application/json", "Cache-Control": "no-store", ...headers },
  });
}

function preflight(request: Request, methods: string): Response {
  const headers = {
    "Access-Control-Allow-Methods": methods,
    "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers") ?? "",
    "Access-Control-Max-Age": "3600",
    "Vary": "Access-Control-Request-Headers",
  };
  return open(new Response(null, { status: 204, headers }));
}

function open(response: Response): Response {
  response.headers.set("Access-Control-Allow-Origin", "*");
  response.headers.set("Access-Control-Expose-Headers", EXPOSED);
  return response;
}
