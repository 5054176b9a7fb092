"""x"""

from __future__ import annotations

from tests.support.app import App, differences


def test_first(app: App) -> None:
    app.create_articles()
    assert app.attach_articles() == "articles"
    app.insert([1, 2, 3])
    assert differences(app.connection) == []
    assert [row.id for row in app.known("p.id")] == [1, 2, 3]
