"""The page at `/`: files of the package, the same for everybody."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from service.http.problems import ProblemError

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "page"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

_HEADERS = {
    # Nothing from elsewhere, no script or style within the markup, and none made of text.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked about by its ETag
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


@cache
def _files() -> dict[str, _File]:
    found = {}
    for path in _FOLDER.iterdir():
        if media_type := _TYPES.get(path.suffix):
            content = path.read_bytes()
            digest = hashlib.blake2b(content, digest_size=12).hexdigest()
            found[path.name] = _File(content, f"{media_type}; charset=utf-8", f'"{digest}"')
    return found


@router.get("/")
async def get_page(request: Request) -> Response:
    """The page."""
    return _answer("index.html", request)


@router.get("/page/{name}")
async def get_file(name: str, request: Request) -> Response:
    """A file that the page is made of."""
    return _answer(name, request)


def _answer(name: str, request: Request) -> Response:
    file = _files().get(name)
    if file is None:
        raise ProblemError(404, f"{name!r} is no file of the page")
    headers = {**_HEADERS, "ETag": file.etag}
    known = request.headers.get("If-None-Match", "").replace("W/", "")
    if file.etag in (one.strip() for one in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.media_type})
