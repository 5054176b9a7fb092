// REST and Auth of the local stack behind one port, as in a Supabase project: PostgREST itself serves
// /rest/v1, @supabase/lite and admin.mjs serve /auth/v1, and gateway.mjs does what stands before them.
// Settings come as JSON in TWO_TOWER_API: {database_url, port, postgrest, publishable_key, secret_key,
// jwt_secret}; the URL as role authenticator, `postgrest` the path of the program.
import { createServer } from "node:http";
import { createAuth } from "./auth.mjs";
import { Gateway } from "./gateway.mjs";
import { startPostgrest } from "./rest.mjs";

const NO_ROUTE = {
  message: "no Route matched with those values",
  hint: "The local stack has REST and Auth. Use supabase start for the rest of Supabase.",
};

const settings = JSON.parse(process.env.TWO_TOWER_API);
const gateway = new Gateway(settings);
const rest = startPostgrest(settings);
const auth = await createAuth(settings, gateway);

const server = createServer(async (request, response) => {
  if (gateway.answersForeignOrigin(request, response)) return;
  const [, service, path] = request.url.match(/^\/(rest|auth)\/v1(?=[/?]|$)(.*)$/) ?? [];
  if (service === "auth") return auth(request, response);
  if (service !== "rest") return gateway.refuse(response, 404, NO_ROUTE);
  const token = await gateway.token(request, response);
  if (token) rest(request, response, path, token, (await gateway.claims(token)) !== null);
});
server.listen(settings.port, "127.0.0.1", () => console.log(`listening on ${settings.port}`));
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(0));
