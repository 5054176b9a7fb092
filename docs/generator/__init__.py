"""Writes docs/reference.md from the catalogue of a migrated database and from the command line."""
