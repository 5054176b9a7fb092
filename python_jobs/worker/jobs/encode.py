"""Encoding of texts: the database says which, the encoder turns them into vectors."""

from __future__ import annotations

from functools import cache
from typing import Any

from python_jobs.db import Connection, call, call_rows
from python_jobs.worker.encoder import Encoder

BATCH = 256


@cache
def encoder() -> Encoder:
    """The sentence encoder, loaded once per process: that takes seconds."""
    return Encoder()


def encode_posts(connection: Connection) -> dict[str, Any]:
    """Encodes all posts that wait, in batches; each batch is stored before the next is read."""
    return {
        "posts": _encode(
            connection,
            "select post_id as id, content_hash, content from two_tower.posts_to_encode(%s)",
            "select two_tower.store_base_embeddings(%s::bigint[], %s, %s::bigint[])",
        )
    }


def encode_profiles(connection: Connection) -> dict[str, Any]:
    """Encodes all profiles that wait."""
    return {
        "profiles": _encode(
            connection,
            "select user_id as id, content_hash, content from two_tower.profiles_to_encode(%s)",
            "select two_tower.store_profile_embeddings(%s::uuid[], %s, %s::bigint[])",
        )
    }


def _encode(connection: Connection, read: str, store: str) -> int:
    encoded = 0
    while texts := call_rows(connection, read, BATCH):
        vectors = encoder().encode([text.content for text in texts])
        hashes = [text.content_hash for text in texts]
        stored = call(connection, store, [text.id for text in texts], list(vectors), hashes)
        encoded += stored
        if not stored:  # transactions of the app hold them all: a later job finds them
            break
    return encoded
