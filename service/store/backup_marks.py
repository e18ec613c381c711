"""What the store says of its backups."""

from __future__ import annotations

from service.store.client import Store
from service.store.errors import RestoreNotEnded
from service.store.record_keys import RecordKeys


class BackupMarks:
    """Those of one namespace. Methods raise StoreError."""

    def __init__(self, store: Store, keys: RecordKeys) -> None:
        self._store, self._keys = store, keys

    async def note_backup(self, began_ms: int) -> None:
        await self._store.request(("SET", self._keys.backup, began_ms))

    async def newest_ms(self) -> int | None:
        """When the last backup was begun; None: there was none."""
        found = await self._store.request(("GET", self._keys.backup))
        return None if found is None else int(found)

    async def begin_restore(self) -> None:
        await self._store.request(("SET", self._keys.restoring, 1))

    async def end_restore(self) -> None:
        await self._store.request(("UNLINK", self._keys.restoring))

    async def require_whole(self) -> None:
        """Raises RestoreNotEnded while a backup is being loaded, or where that has not ended."""
        if await self._store.request(("EXISTS", self._keys.restoring)):
            raise RestoreNotEnded(
                f"store {self._store.url}, namespace {self._keys.namespace}: a restore is "
                "under way, or was cut off; run `tim4rec restore OUT --replace` to the end"
            )
