"""Encoding of texts: the database says which, the encoder turns them into vectors."""

from __future__ import annotations

from functools import cache
from typing import Any

from python_jobs.db import Connection, call, call_rows, rows, value
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


def encode_texts(connection: Connection) -> int:
    """Encodes texts whose callers wait for them, at most a batch. Returns how many."""
    texts = rows(connection, "select * from two_tower.texts_to_encode()")
    if texts:
        vectors = encoder().encode([text.content for text in texts])
        store = "select two_tower.store_text_embeddings(%s::bigint[], %s)"
        value(connection, store, [text.text_id for text in texts], list(vectors))
    return len(texts)


def _encode(connection: Connection, read: str, store: str) -> int:
    encoded = 0
    encode_texts(connection)
    while texts := call_rows(connection, read, BATCH):
        vectors = encoder().encode([text.content for text in texts])
        hashes = [text.content_hash for text in texts]
        stored = call(connection, store, [text.id for text in texts], list(vectors), hashes)
        encoded += stored
        encode_texts(connection)  # nobody who waits for a search waits for all posts
        if not stored:  # transactions of the app hold them all: a later job finds them
            break
    return encoded
