"""A namespace's keys into a folder, and from there into an empty namespace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import polars as pl

from service.bulk.backup_folder import BackupError, BackupFolder, NewBackup
from service.bulk.stored_keys import KEYS, StoredKey, StoredKeys
from service.store.backup_marks import BackupMarks

Progress = Callable[[int], None]


async def back_up(keys: StoredKeys, names: pl.Series, new: NewBackup, progress: Progress) -> None:
    """Adds the keys of these names, and then those that were not there, or not found, before: a
    Cluster may have moved some from one node to another."""
    await _add(keys, names, new, progress)
    later = await keys.names()
    await _add(keys, later.filter(~later.is_in(names.implode())), new, progress)


async def _add(keys: StoredKeys, names: pl.Series, new: NewBackup, progress: Progress) -> None:
    for start in range(0, len(names), KEYS):
        some = names.slice(start, KEYS).to_list()
        async for group in keys.read(some):
            await asyncio.to_thread(new.add, group)
        progress(len(some))


async def restore(
    keys: StoredKeys, folder: BackupFolder, marks: BackupMarks, progress: Progress
) -> None:
    """Makes the namespace what the folder holds, and reads it back; `progress` hears of each key
    twice. Cut off, it leaves a mark over which no service starts.

    Raises:
        BackupError: the folder is damaged, or the store has something else afterwards.
        StoreError: the store gave up.
    """
    await asyncio.to_thread(folder.require_sound)
    await marks.begin_restore()
    await keys.clear()
    for some in _groups(folder):
        await keys.write(some)
        progress(len(some))
    for some in _groups(folder):
        await _require_same(keys, some)
        progress(len(some))
    found, wanted = len(await keys.names()), sum(folder.manifest.keys.values())
    if found > wanted:
        raise BackupError(f"{found:,} keys are in the store, not {wanted:,}: {_OTHERS}")
    await marks.note_backup(folder.manifest.began_ms)
    await marks.end_restore()


_OTHERS = "something else writes there; stop it, and restore again with --replace"


async def _require_same(keys: StoredKeys, wanted: Sequence[StoredKey]) -> None:
    names = [one.name for one in wanted]
    found = {one.name: one async for group in keys.read(names) for one in group}
    now_ms = await keys.now_ms()
    for one in wanted:
        expired = one.expires_ms is not None and one.expires_ms <= now_ms
        if found.get(one.name) != one and not (expired and one.name not in found):
            name = one.name.decode(errors="replace")
            raise BackupError(f"key {name!r} is not in the store as in the backup: {_OTHERS}")


def _groups(folder: BackupFolder) -> Iterator[Sequence[StoredKey]]:
    for part in folder.parts():
        for start in range(0, len(part), KEYS):
            yield part[start : start + KEYS]
