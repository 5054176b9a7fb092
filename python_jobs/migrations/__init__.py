"""The files of the engine, a database that takes them, and what may be in their way."""
