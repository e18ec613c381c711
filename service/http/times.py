"""A time in a request."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from model.times import parse_time

Time = Annotated[
    int,
    BeforeValidator(parse_time),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}],
            "description": "ISO 8601, or epoch seconds (from 1e11 on: milliseconds)",
            "examples": ["2026-01-31T12:00:00Z", 1769860800],
        }
    ),
]
