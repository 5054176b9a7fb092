"""Encoding of texts: the database says which, the encoder turns them into vectors."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from python_jobs.db import Connection, Vectors, call, call_rows, rows, value
from python_jobs.worker.encoder import DEFAULT_MODEL, Encoder
from python_jobs.worker.stopping import leave_if_told

BATCH = 256  # texts read and stored at a time
PIECE = 32  # texts encoded at a time: of one length, so that none is padded much


@cache
def _load(name: str) -> Encoder:
    return Encoder(name)


def encoder(name: str = DEFAULT_MODEL) -> Encoder:
    """A sentence encoder, loaded once per process: that takes seconds."""
    return _load(name)


def encoder_at_work(connection: Connection) -> Encoder:
    """The one that the candidate tower reads."""
    return encoder(value(connection, "select two_tower.active_encoder()"))


def encode_posts(connection: Connection) -> dict[str, Any]:
    """Encodes all posts that wait, in batches; each batch is stored before the next is read."""
    return {
        "posts": _encode(
            connection,
            "select post_id as id, content_hash, content from two_tower.posts_to_encode(%s)",
            "select two_tower.store_base_embeddings(%s::bigint[], %s, %s::bigint[], %s)",
        )
    }


def encode_profiles(connection: Connection) -> dict[str, Any]:
    """Encodes all profiles that wait."""
    return {
        "profiles": _encode(
            connection,
            "select user_id as id, content_hash, content from two_tower.profiles_to_encode(%s)",
            "select two_tower.store_profile_embeddings(%s::uuid[], %s, %s::bigint[], %s)",
        )
    }


def encode_texts(connection: Connection) -> int:
    """Encodes texts whose callers wait for them, at most a batch. Returns how many."""
    texts = rows(connection, "select * from two_tower.texts_to_encode()")
    if texts:
        model = encoder_at_work(connection)
        vectors = model.encode_readable([text.content for text in texts])
        store = "select two_tower.store_text_embeddings(%s::bigint[], %s, %s)"
        value(connection, store, [text.text_id for text in texts], Vectors(vectors), model.name)
    return len(texts)


def _encode(connection: Connection, read: str, store: str) -> int:
    encoded = 0
    while texts := call_rows(connection, read, BATCH):
        model = encoder_at_work(connection)
        vectors = encode_in_pieces(connection, model, [text.content for text in texts])
        hashes = [text.content_hash for text in texts]
        ids = [text.id for text in texts]
        stored = call(connection, store, ids, Vectors(vectors), hashes, model.name)
        encoded += stored
        if not stored:  # transactions of the app hold them all: a later job finds them
            break
        leave_if_told()
    return encoded


def encode_in_pieces(
    connection: Connection, model: Encoder, texts: list[str]
) -> list[np.ndarray | None]:
    """Base embeddings [384]. Whoever waits for a search waits for one piece, not for all."""
    vectors: list[np.ndarray | None] = [None] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for begin in range(0, len(texts), PIECE):
        encode_texts(connection)
        piece = by_length[begin : begin + PIECE]
        encoded = model.encode_readable([texts[place] for place in piece])
        for place, vector in zip(piece, encoded, strict=True):
            vectors[place] = vector
    return vectors
