"""A Supabase-like stack without Docker: Postgres and Deno from wheels, the rest from npm."""
