"""The kinds of jobs. A handler takes a connection, does the work, and returns what it measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from python_jobs.db import Connection
from python_jobs.worker.jobs.candidate_tower import train_candidate_tower
from python_jobs.worker.jobs.change_encoder import change_encoder
from python_jobs.worker.jobs.encode import encode_posts, encode_profiles
from python_jobs.worker.jobs.keep import checkpoint, run_audit
from python_jobs.worker.jobs.serve import build_serving_index, check_serving_index
from python_jobs.worker.jobs.study import study
from python_jobs.worker.jobs.user_tower import encode_active_users, train_user_tower

Handler = Callable[[Connection], dict[str, Any]]

HANDLERS: dict[str, Handler] = {
    "encode_posts": encode_posts,
    "encode_profiles": encode_profiles,
    "build_serving_index": build_serving_index,
    "check_serving_index": check_serving_index,
    "checkpoint": checkpoint,
    "run_audit": run_audit,
    "change_encoder": change_encoder,
    "encode_users": encode_active_users,
    "study": study,
    "train_candidate_tower": train_candidate_tower,
    "train_user_tower": train_user_tower,
}
