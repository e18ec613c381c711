"""The OpenAPI document in docs/ is that of the code."""

from __future__ import annotations

from pathlib import Path

from service.openapi import document

FILE = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_document_is_that_of_the_code() -> None:
    assert FILE.read_text("utf-8") == document(), (
        "routes or schemas have changed: python -m service.openapi > docs/openapi.json"
    )
