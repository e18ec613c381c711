"""The key that a command shows to a service."""

from __future__ import annotations

import re

from cli.console import CommandError

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def key_header(api_key: str | None) -> dict[bytes, bytes]:
    """The header of a key, none without one. Raises CommandError where no header can carry it."""
    key = (api_key or "").strip()
    if _CONTROL.search(key):
        raise CommandError("--api-key (TIM4REC_API_KEY) has a control character in it: take it out")
    try:
        return {b"X-API-Key": key.encode()} if key else {}
    except UnicodeEncodeError:
        raise CommandError("--api-key (TIM4REC_API_KEY) is no UTF-8") from None
