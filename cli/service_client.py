"""The client that a command asks a service by."""

from __future__ import annotations

import re

import httpx

from cli.console import CommandError
from cli.service_url import ServiceUrl
from tim4rec_client import AsyncClient

TIMEOUT_S = 60.0
"""Of one attempt: what a command asks for may take the service long."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def service_client(url: str, api_key: str | None, *, retry_for_s: float) -> AsyncClient:
    """For the service at --url. Raises CommandError where that, or --api-key, can't be used."""
    asked = ServiceUrl.parse(url)
    key = (api_key or "").strip()
    if _CONTROL.search(key):
        raise CommandError("--api-key (TIM4REC_API_KEY) has a control character in it: take it out")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise CommandError("--api-key (TIM4REC_API_KEY) is no UTF-8") from None
    base = httpx.URL(asked.base)
    if asked.login:
        base = base.copy_with(username=asked.login[0], password=asked.login[1])
    return AsyncClient(str(base), api_key=key or None, retry_for_s=retry_for_s, timeout_s=TIMEOUT_S)
