"""The change to the encoder that the settings name: see the migration `encoder`."""

from __future__ import annotations

from typing import Any

from python_jobs.db import Connection, call, call_rows, value
from python_jobs.worker.encoder import WIDTH
from python_jobs.worker.jobs.encode import encode_in_pieces, encoder
from python_jobs.worker.jobs.versions import Origin, load, matrix, store
from python_jobs.worker.towers.candidate import OUTPUT
from python_jobs.worker.towers.fit import fit_tower


def change_encoder(connection: Connection) -> dict[str, Any]:
    """Fits a tower to the model that the settings name, and begins the switch to it."""
    name = value(connection, "select two_tower.encoder_to_try()")
    if name is None:
        return {"skipped": "this encoder is at work"}
    try:
        model = encoder(name)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        value(connection, "select two_tower.refuse_encoder(%s, %s)", name, reason)
        return {"refused": reason}
    texts = call_rows(connection, "select * from two_tower.texts_to_fit()")
    vectors = encode_in_pieces(connection, model, [text.content for text in texts])
    read = [place for place, vector in enumerate(vectors) if vector is not None]
    parent = value(connection, "select two_tower.active_version('candidate_tower')")
    result = fit_tower(
        matrix([vectors[place] for place in read], WIDTH),
        matrix([texts[place].embedding for place in read], OUTPUT),
        load(connection, parent)[1],
    )
    version = store(connection, "candidate_tower", result, Origin(parent, None, None))
    begun = call(connection, "select two_tower.switch_encoder(%s, %s)", name, version)
    return {"version": version, "begun": begun, **result.metrics}
