"""A replay of MovieLens 100K through the database and the API, and what it measured."""
