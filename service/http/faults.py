"""What is wrong with a field of a request, in words for whoever sent it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_NAMED = 20
"""Faults of one request that its answer names; of the others it has the number."""
LONGEST_NAME, LONGEST_MESSAGE = 100, 300

_SAID = {
    "missing": "is required",
    "extra_forbidden": "is no field of this",
    "string_type": "must be text",
    "string_unicode": "must be valid Unicode",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be {expected}",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "too_short": "must have at least {min_length} of them",
    "too_long": "must have at most {max_length} of them",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a whole number of less digits",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "model_attributes_type": "must be a JSON object, sent with Content-Type: application/json",
}

UNREADABLE = "body: must be JSON in UTF-8, not nested too deeply"


def clipped(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def named(errors: Sequence[Any]) -> list[dict[str, str]]:
    """The first MOST_NAMED of pydantic's errors, each with its field and message."""
    return [
        {
            "field": clipped(said["field"], LONGEST_NAME),
            "message": clipped(said["message"], LONGEST_MESSAGE),
        }
        for said in map(_explained, errors[:MOST_NAMED])
    ]


def _explained(error: Any) -> dict[str, str]:
    kind, place = error["type"], [str(part) for part in error["loc"]]
    if kind == "json_invalid":
        reason = error.get("ctx", {}).get("error", "it cannot be read")
        return {"field": "body", "message": f"must be JSON; at character {place[-1]}: {reason}"}
    said = _SAID.get(kind)
    message = str(error["msg"]).removeprefix("Value error, ")
    if said is not None:
        message = said.format_map(error.get("ctx", {}))
    return {"field": ".".join(place), "message": message}
