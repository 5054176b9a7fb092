"""All tests: folders as the wings of the package and the stages of the SQL."""
