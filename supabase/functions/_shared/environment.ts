// What a function knows of its project, and the settings that an operator gives it by
// `supabase secrets set`.

export function setting(name: string): string | undefined {
  return Deno.env.get(name) || undefined;
}

export function numberSetting(name: string, otherwise: number): number {
  const value = Number(setting(name) ?? otherwise);
  if (!Number.isFinite(value) || value <= 0) throw new Error(`${name} is not a positive number`);
  return value;
}

export function projectUrl(): string {
  return required("SUPABASE_URL");
}

export function anonKey(): string {
  return newKey("SUPABASE_PUBLISHABLE_KEYS") ?? required("SUPABASE_ANON_KEY");
}

export function serviceKey(): string {
  return newKey("SUPABASE_SECRET_KEYS") ?? required("SUPABASE_SERVICE_ROLE_KEY");
}

// Projects have keys by name, or the one key of before.
function newKey(name: string): string | undefined {
  const keys = setting(name);
  return keys && Object.values(JSON.parse(keys) as Record<string, string>)[0];
}

function required(name: string): string {
  const value = setting(name);
  if (!value) throw new Error(`${name} is not set: a project sets it`);
  return value;
}
