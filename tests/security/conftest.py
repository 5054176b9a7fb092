"""A patient client of the API."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.patience import PATIENCE_S


@pytest.fixture(scope="session")
def patient_http() -> Iterator[httpx.Client]:
    """Keeps its connections, and waits as long as a busy machine takes."""
    with httpx.Client(timeout=PATIENCE_S) as client:
        yield client
