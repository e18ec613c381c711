"""Requests that came whole and in plain form, told by their bytes alone.

For a process that has more requests than it can answer, parsing one in order to refuse it is most
of what refusing costs.
"""

from __future__ import annotations

import re

# Where a request ends must be beyond doubt: no transfer coding, at most one length, no line that
# is not ended by CRLF.
_FIELD = (
    rb"(?:(?!content-length|transfer-encoding|expect|upgrade|connection:(?! ?keep-alive\r))"
    rb"[a-z0-9-]+:[\t -~]*\r\n)*"
)
_PLAIN = re.compile(
    rb"([A-Z]+) (/[!-\"$->@-~]*)(?:\?[!-~]*)? HTTP/1\.1\r\n"
    + _FIELD
    + rb"(?:content-length: ?([0-9]{1,9})\r\n"
    + _FIELD
    + rb")?\r\n",
    re.IGNORECASE,
)


def target(data: bytes) -> tuple[bytes, bytes] | None:
    """The method and path of the one request that `data` is, body included; its connection stays
    open after it. None: it is not that for certain, and a parser has to say what it is."""
    head = _PLAIN.match(data)
    if head is None or len(data) - head.end() != int(head[3] or 0):
        return None
    return head[1], head[2]
