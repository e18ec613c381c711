"""The states in memory, handed from an engine to the next one of the same identity."""

from __future__ import annotations

from collections.abc import Sequence

from service.engine.batch_runner import BatchRunner
from service.engine.engine import Engine
from service.engine.snapshots import Snapshot

AT_ONCE = 64
"""Users whose states are copied between two batches: some milliseconds of both engines."""


async def adopt(engine: Engine, other: Engine) -> None:
    """Copies the states that another engine of this identity has, to one that answers nobody yet.

    A state that the other moves on meanwhile is moved on here by the log as any old one is.

    Raises:
        StoreError: the store does not answer.
    """
    await other.erasures.hear()  # what is erased from here on, `engine` hears itself
    users = other.pool.users()[-engine.pool.capacity :]
    for start in range(0, len(users), AT_ONCE):
        part = users[start : start + AT_ONCE]
        found = await other.scheduler.aside(_copied, other.runner, part)
        await engine.scheduler.aside(_taken, engine.runner, found)


def _copied(runner: BatchRunner, users: Sequence[str]) -> dict[str, Snapshot]:
    """Without those whose history had lost its beginning: that is not known of a copy."""
    found: dict[str, Snapshot] = {}
    for user_id in users:
        row, copy = runner.pool.get(user_id), runner.copy(user_id)
        if row is not None and copy is not None and not row.truncated:
            found[user_id] = copy
    return found


def _taken(runner: BatchRunner, found: dict[str, Snapshot]) -> None:
    for user_id, base in found.items():
        runner.pool.unpin(runner.begun(user_id, base))
