"""Times in requests and answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from model.gaps import UNKNOWN_TIME
from model.times import iso, parse_time

UNKNOWN = "unknown"
_WRITTEN = [{"type": "string", "format": "date-time"}, {"type": "number"}]
_SAID = "ISO 8601, or epoch seconds (from 1e11 on: milliseconds)"
_EXAMPLES = ["2026-01-31T12:00:00Z", 1769860800]

Time = Annotated[
    int,
    BeforeValidator(parse_time),
    WithJsonSchema({"anyOf": _WRITTEN, "description": _SAID, "examples": _EXAMPLES}),
]


def _parse_request_time(value: object) -> int:
    if value == UNKNOWN:
        return UNKNOWN_TIME
    try:
        return parse_time(value)
    except ValueError as error:
        raise ValueError(f"{error}, or {UNKNOWN}") from None


def _written(at_ms: int) -> str | None:
    return None if at_ms == UNKNOWN_TIME else iso(at_ms)


RequestTime = Annotated[
    int,
    BeforeValidator(_parse_request_time),
    WithJsonSchema(
        {
            "anyOf": [*_WRITTEN, {"type": "string", "const": UNKNOWN}],
            "description": f"{_SAID}, or {UNKNOWN}",
            "examples": [*_EXAMPLES, UNKNOWN],
        }
    ),
]
"""The moment of a recommendation, as it is asked for; UNKNOWN_TIME where that is not known."""

AssumedTime = Annotated[int, PlainSerializer(_written, return_type=str | None)]
"""The same, as answers give it; a null is written even where other ones are left out."""
