"""What an attack is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.hostile.target import Found, Kind, Target

FLAT_MB = 48.0
"""Memory that comes and goes with any load."""


@dataclass(frozen=True)
class Attack:
    """`run` sends it, and notes what was answered and what was not as promised. `growth_mb`: most
    that the service's memory may grow meanwhile; `on`: which service."""

    name: str
    promise: str
    run: Callable[[Target, Found], None]
    growth_mb: float = FLAT_MB
    on: Kind = "closed"
