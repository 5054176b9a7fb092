// REST, Auth and Edge Functions of the local stack behind one port, as in a Supabase project: PostgREST
// itself serves /rest/v1, @supabase/lite and admin.mjs serve /auth/v1, Deno serves /functions/v1, and
// gateway.mjs does what stands before them.
// Settings come as JSON in TWO_TOWER_API: {database_url, port, postgrest, publishable_key, secret_key,
// jwt_secret, functions}; the URL as role authenticator, `postgrest` the path of the program;
// `functions` as in functions.mjs.
import { createServer } from "node:http";
import { createAuth } from "./auth.mjs";
import { createFunctions } from "./functions.mjs";
import { Gateway } from "./gateway.mjs";
import { startPostgrest } from "./rest.mjs";

const NO_ROUTE = {
  message: "no Route matched with those values",
  hint: "The local stack has REST, Auth and Edge Functions. Use supabase start for the rest of Supabase.",
};

const settings = JSON.parse(process.env.TWO_TOWER_API);
const gateway = new Gateway(settings);
const rest = startPostgrest(settings);
const auth = await createAuth(settings, gateway);
const functions = createFunctions(settings, gateway);

const server = createServer(async (request, response) => {
  const [, service, path] = request.url.match(/^\/(rest|auth|functions)\/v1(?=[/?]|$)(.*)$/) ?? [];
  // Functions answer to other origins themselves, and need no key.
  if (service === "functions") return functions(request, response, path);
  if (gateway.answersForeignOrigin(request, response)) return;
  if (service === "auth") return auth(request, response);
  if (service !== "rest") return gateway.refuse(response, 404, NO_ROUTE);
  const token = await gateway.token(request, response);
  if (token) rest(request, response, path, token, (await gateway.claims(token)) !== null);
});
server.listen(settings.port, "127.0.0.1", () => console.log(`listening on ${settings.port}`));
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(0));
