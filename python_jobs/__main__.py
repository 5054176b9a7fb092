"""`python -m python_jobs` is `two-tower`."""

from python_jobs.cli import main

main()
