// The users' part of the Auth admin API, as @supabase/lite has none: create, list, read, update, delete.
// Who may call it is decided before.
import { randomUUID } from "node:crypto";
import bcrypt from "bcryptjs";

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const EMAIL = /^[^\s@]+@[^\s@]+\.[^\s@]+$/;
const now = () => new Date().toISOString();
// A field that would be ignored in silence is refused: [name, what is missing].
const UNSUPPORTED = [
  ["phone", "Phone numbers"],
  ["ban_duration", "Bans"],
  ["password_hash", "Passwords as hashes"],
  ["should_soft_delete", "Soft deletion"],
];

class Refusal extends Error {
  constructor(status, code, message, more = {}) {
    super(message);
    Object.assign(this, { status, code, more });
  }
}
const UNEXPECTED = new Refusal(500, "unexpected_failure", "Unexpected failure, please check server logs for more information");
const invalid = (message) => new Refusal(400, "validation_failed", message);
const unsupported = (what) => new Refusal(422, "not_implemented", `${what}: the local stack has none. Use supabase start.`);

// Returns a function from a Request to a Response. sql: a connection that may write schema auth.
export const createAdmin = (sql) => {
  const users = {
    list: async (request) => {
      const asked = new URL(request.url).searchParams;
      const [page, size] = [Number(asked.get("page") || 1), Number(asked.get("per_page") || 50)];
      const isCount = (number) => Number.isInteger(number) && number >= 1;
      if (!isCount(page) || !isCount(size)) throw invalid("page and per_page are numbers from 1 on");
      const [{ count }] = await sql`select count(*)::integer as count from auth.users`;
      const listed = await readUsers(sql, sql`order by u.created_at desc, u.id limit ${size} offset ${(page - 1) * size}`);
      const last = Math.max(1, Math.ceil(count / size));
      const link = (number, rel) => `</admin/users?page=${number}&per_page=${size}>; rel="${rel}"`;
      const links = [...(page < last ? [link(page + 1, "next")] : []), link(last, "last")];
      const headers = { "X-Total-Count": String(count), Link: links.join(", ") };
      return Response.json({ users: listed, aud: "authenticated" }, { headers });
    },

    create: async (request) => {
      const asked = await readBody(request);
      const { id = randomUUID(), password = randomUUID(), user_metadata = {}, app_metadata = {} } = asked;
      if (!UUID.test(id)) throw invalid("ID must conform to the uuid v4 format");
      const email = readEmail(asked.email);
      const user = {
        id,
        email,
        role: asked.role || "authenticated",
        encrypted_password: await hash(password),
        email_confirmed_at: asked.email_confirm ? now() : null,
        raw_app_meta_data: sql.json({ provider: "email", providers: ["email"], ...app_metadata }),
        raw_user_meta_data: sql.json({ ...user_metadata, email_verified: Boolean(asked.email_confirm) }),
      };
      const identity = {
        id: randomUUID(),
        provider: "email",
        provider_id: id,
        user_id: id,
        identity_data: sql.json({ sub: id, email, email_verified: false, phone_verified: false }),
      };
      await write("creating new user", async (transaction) => {
        await transaction`insert into auth.users ${sql(user)}`;
        await transaction`insert into auth.identities ${sql(identity)}`;
      });
      return Response.json(await findUser(id));
    },

    read: async (request, id) => Response.json(await findUser(id)),

    update: async (request, id) => {
      const asked = await readBody(request);
      await findUser(id);
      const hashed = asked.password === undefined ? null : await hash(asked.password);
      const email = asked.email === undefined ? null : readEmail(asked.email);
      await write("updating user", async (transaction) => {
        const [user] = await transaction`select * from auth.users where id = ${id} for update`;
        const changed = {
          updated_at: now(),
          raw_user_meta_data: sql.json(merge(user.raw_user_meta_data, asked.user_metadata)),
          raw_app_meta_data: sql.json(merge(user.raw_app_meta_data, asked.app_metadata)),
          ...(hashed && { encrypted_password: hashed }),
          ...(email && { email }),
          ...(asked.role && { role: asked.role }),
          ...(asked.email_confirm && { email_confirmed_at: user.email_confirmed_at ?? now() }),
        };
        await transaction`update auth.users set ${sql(changed)} where id = ${id}`;
        if (email) {
          await transaction`update auth.identities set updated_at = now(), identity_data = identity_data || ${sql.json({ email })}
            where user_id = ${id} and provider = 'email'`;
        }
      });
      return Response.json(await findUser(id));
    },

    delete: async (request, id) => {
      await readBody(request);
      await findUser(id);
      await write("deleting user", (transaction) => transaction`delete from auth.users where id = ${id}`);
      return Response.json({});
    },
  };

  // A failure here is most often one of the project's own triggers or foreign keys.
  const write = async (doing, statements) => {
    try {
      await sql.begin(statements);
    } catch (error) {
      if (error.constraint_name === "users_email_partial_key") {
        throw new Refusal(422, "email_exists", "A user with this email address has already been registered");
      }
      console.error(`Error ${doing}:`, error);
      throw new Refusal(500, "unexpected_failure", `Database error ${doing}: ${error.message}`);
    }
  };

  const findUser = async (id) => {
    if (!UUID.test(id)) throw new Refusal(404, "validation_failed", "user_id must be an UUID");
    const [user] = await readUsers(sql, sql`where u.id = ${id}`);
    if (!user) throw new Refusal(404, "user_not_found", "User not found");
    return user;
  };

  const route = async (request) => {
    const [, id] = new URL(request.url).pathname.match(/^\/auth\/v1\/admin\/users(?:\/([^/]*))?\/?$/) ?? [null, null];
    const operations = id ? { GET: users.read, PUT: users.update, DELETE: users.delete } : { GET: users.list, POST: users.create };
    const operation = id !== null && operations[request.method];
    if (!operation) throw unsupported("This call of the Auth admin API");
    return operation(request, id);
  };

  return async (request) => {
    try {
      return await route(request);
    } catch (error) {
      if (!(error instanceof Refusal)) console.error("Error in the admin API:", error);
      const { status, code, message, more } = error instanceof Refusal ? error : UNEXPECTED;
      const body = { code: status, error_code: code, msg: message, ...more };
      return Response.json(body, { status, headers: { "X-Sb-Error-Code": code } });
    }
  };
};

const readUsers = async (sql, which) => {
  const rows = await sql`
    select u.id, u.aud, u.role, u.email, coalesce(u.phone, '') as phone, u.email_confirmed_at, u.confirmed_at,
      u.last_sign_in_at, u.raw_app_meta_data as app_metadata, u.raw_user_meta_data as user_metadata,
      coalesce((
        select json_agg(json_build_object('identity_id', i.id, 'id', i.provider_id, 'user_id', i.user_id,
          'identity_data', i.identity_data, 'provider', i.provider, 'last_sign_in_at', i.last_sign_in_at,
          'created_at', i.created_at, 'updated_at', i.updated_at, 'email', i.email) order by i.created_at)
        from auth.identities i where i.user_id = u.id), '[]') as identities,
      u.created_at, u.updated_at, u.is_anonymous
    from auth.users u ${which}`;
  // A time that has not come yet is left out, as Supabase does.
  return rows.map((row) => Object.fromEntries(Object.entries(row).filter(([, value]) => value !== null)));
};

const readBody = async (request) => {
  const text = await request.text();
  const badJson = new Refusal(400, "bad_json", "Could not parse request body as JSON");
  let body;
  try {
    body = JSON.parse(text || "{}");
  } catch {
    throw badJson;
  }
  if (body === null || typeof body !== "object") throw badJson;
  for (const [name, what] of UNSUPPORTED) if (body[name]) throw unsupported(what);
  return body;
};

const readEmail = (email) => {
  if (!email) throw invalid("Cannot create a user without an email");
  if (typeof email !== "string" || !EMAIL.test(email)) throw invalid("Unable to validate email address: invalid format");
  return email.toLowerCase();
};

const hash = (password) => {
  if (typeof password !== "string") throw invalid("A password is a text");
  if (password.length < 6) {
    const more = { weak_password: { reasons: ["length"] } };
    throw new Refusal(422, "weak_password", "Password should be at least 6 characters.", more);
  }
  if (Buffer.byteLength(password) > 72) throw invalid("Password cannot be longer than 72 characters");
  return bcrypt.hash(password, 10);
};

// A field set to null goes.
const merge = (before, changes = {}) =>
  Object.fromEntries(Object.entries({ ...before, ...changes }).filter(([, value]) => value !== null));
