"""How many examples tests of properties try: few, unless TEST_DEPTH asks for more."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

DEPTH = int(os.environ.get("TEST_DEPTH", "1"))


def examples(number: int) -> int:
    """`number`, or TEST_DEPTH times as many."""
    return number * DEPTH


def register() -> None:
    """Makes it so for all tests. The few are the same ones in every run; a busy machine is no
    failure."""
    settings.register_profile(
        "steady",
        max_examples=examples(40),
        deadline=None,
        derandomize=DEPTH == 1,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("steady")
