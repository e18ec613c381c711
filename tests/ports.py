"""Ports for servers that tests start.

They lie below those that a system gives to outgoing connections, and each test process has a range
of its own, so that none is taken between the choice and the start of its server.
"""

from __future__ import annotations

import os
import random
import socket
from itertools import count

FIRST, EACH = 10_000, 2_500
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
# Another run may be under way: it hardly begins at the same place.
_next = count(random.randrange(EACH))


def free_port() -> int:
    """A port that nothing listens on, another one at each call."""
    for _ in range(EACH):
        port = FIRST + EACH * _worker + next(_next) % EACH
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise RuntimeError("no port is free")
