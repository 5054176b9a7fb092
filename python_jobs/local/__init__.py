"""A Supabase-like stack without Docker: Postgres from a wheel, REST and Auth from npm."""
