"""`tim4rec health`: the probe of containers. Imports little, so that it costs little."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Annotated

import typer

from cli.console import CommandError, out, say
from cli.service_url import ServiceUrl, service_url

# A proxy of the environment is for the way out, not for a service on this machine.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def health(
    url: Annotated[
        str | None,
        typer.Option(
            help="What to ask.",
            show_default="http://127.0.0.1:8000/readyz, or TIM4REC_OPERATIONS_PORT or TIM4REC_PORT "
            "instead of 8000, and where a service listens with TIM4REC_HOST",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for it.")] = 5.0,
) -> None:
    """Ask a service whether it is ready; exit status 1 if it is not."""
    ports = [os.environ.get(name) for name in ("TIM4REC_OPERATIONS_PORT", "TIM4REC_PORT")]
    port = next(filter(None, ports), 8000)
    host = os.environ.get("TIM4REC_HOST") or "127.0.0.1"
    asked = ServiceUrl.parse(url or f"{service_url(host, port)}/readyz")
    status, answer = ask(asked.base, timeout, asked.login)
    if status != 200:
        raise CommandError(f"{asked.base}: {answer}")
    say(f"{asked.base}: {answer}", out)


def ask(url: str, timeout_s: float, login: tuple[str, str] | None = None) -> tuple[int, str]:
    """The status of a GET and what the answer says, in one line; status 0: no answer."""
    request = urllib.request.Request(url)
    if login is not None:
        shown = base64.b64encode(":".join(login).encode()).decode()
        request.add_header("Authorization", f"Basic {shown}")
    try:
        with _direct.open(request, timeout=timeout_s) as answer:
            status, body = answer.status, answer.read(10_000)
    except urllib.error.HTTPError as error:
        with error:
            status, body = error.code, error.read(10_000)
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        return 0, " ".join(str(reason).split()) or type(reason).__name__
    try:
        answer = json.loads(body)
        detail = answer.get("detail") or answer["status"]
    except (ValueError, KeyError, AttributeError):
        detail = ""
    return status, f"{status} {' '.join(str(detail).split())}".rstrip()
