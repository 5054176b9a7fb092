"""Encoding of texts: the database says which, the encoder turns them into vectors."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from python_jobs.db import Connection, call, call_rows, rows, value
from python_jobs.worker.encoder import WIDTH, Encoder

BATCH = 256  # texts read and stored at a time
PIECE = 32  # texts encoded at a time: of one length, so that none is padded much


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
    while texts := call_rows(connection, read, BATCH):
        vectors = _encode_in_pieces(connection, [text.content for text in texts])
        hashes = [text.content_hash for text in texts]
        stored = call(connection, store, [text.id for text in texts], list(vectors), hashes)
        encoded += stored
        if not stored:  # transactions of the app hold them all: a later job finds them
            break
    return encoded


def _encode_in_pieces(connection: Connection, texts: list[str]) -> np.ndarray:
    """Base embeddings [n, 384]. Whoever waits for a search waits for one piece, not for all."""
    vectors = np.empty((len(texts), WIDTH), dtype=np.float32)
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for begin in range(0, len(texts), PIECE):
        encode_texts(connection)
        piece = by_length[begin : begin + PIECE]
        vectors[piece] = encoder().encode([texts[place] for place in piece])
    return vectors
