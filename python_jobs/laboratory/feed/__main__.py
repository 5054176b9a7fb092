"""Serves the feed until it is told to end. `two-tower feed` starts it in the background."""

from __future__ import annotations

import signal
import sys

from python_jobs.laboratory.feed.server import serve
from python_jobs.state import read_state, state_dir

state = read_state()
if state is None:
    raise SystemExit("two-tower up has not run here.")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
serve(state, state_dir())
