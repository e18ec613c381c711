"""Settings that all processes of a store and namespace must have alike, noted in the store.

<ns>:settings   hash   name -> value, as the first process had it

Each process compares its own as it starts, and not again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from service.store.client import Store
from service.store.errors import StoreError, StoreUnavailable
from service.store.script import Script

logger = logging.getLogger(__name__)

_NOTE = Script.read("settings")


class SettingsDiffer(Exception):
    """A process has other settings than the store's others. One line, with the fix."""


@dataclass(frozen=True)
class Difference:
    """A setting that is `here` in this process, and that is noted as `there`."""

    name: str
    here: str
    there: str

    def __str__(self) -> str:
        return f"{self.name} is {self.here!r} here and {self.there!r} there"


class SharedSettings:
    """What is noted in one namespace."""

    def __init__(self, store: Store, *, namespace: str = "tim4rec") -> None:
        self.store, self.namespace = store, namespace
        self._key = f"{quote(namespace, safe='')}:settings"

    async def noted(self, name: str) -> str | None:
        """One as it is noted; None: it is not. Raises StoreError: it can't be read."""
        found = await self.store.request(("HGET", self._key, name))
        return None if found is None else found.decode(errors="replace")

    async def agree(self, mine: Mapping[str, str], *, change: bool = False) -> list[Difference]:
        """Compares settings with what is noted, and notes those that are not yet.

        A store that can't be written now is only read: who asked for no change need not know.

        Args:
            change: note mine in place of others.

        Returns:
            what was changed.

        Raises:
            SettingsDiffer: others are noted, and no change was asked for.
            StoreError: they can't be read, or not be changed.
        """
        there = await self.store.request(("HMGET", self._key, *mine))
        differing = _differences(mine, there)
        if not differing and None not in there:
            return []
        self._refuse(differing, change)
        pairs = [text for pair in mine.items() for text in pair]
        (noted,) = await self.store.once([_NOTE.call(self._key, int(change), *pairs)])
        if not isinstance(noted, StoreError):
            # Another process may have been the first just now.
            self._refuse(_differences(mine, noted), change)
        elif differing or isinstance(noted, StoreUnavailable):
            raise noted
        return differing

    def _refuse(self, differing: Sequence[Difference], change: bool) -> None:
        if differing and not change:
            told = ", ".join(map(str, differing))
            raise SettingsDiffer(
                f"store {self.store.url}, namespace {self.namespace}: its processes share other "
                f"settings: {told}; start this one with theirs, or, to have all of them use these, "
                "with TIM4REC_CHANGE_SHARED_SETTINGS=true this once, and then the others anew"
            )


def tell_changes(changed: Sequence[Difference]) -> None:
    """Logs what `agree` has changed."""
    if changed:
        told = ", ".join(f"{one.name} from {one.there!r} to {one.here!r}" for one in changed)
        logger.warning(
            "shared settings changed: %s; processes that run keep theirs: start them anew", told
        )


def _differences(mine: Mapping[str, str], there: Sequence[bytes | None]) -> list[Difference]:
    return [
        Difference(name, here, found.decode(errors="replace"))
        for (name, here), found in zip(mine.items(), there, strict=True)
        if found is not None and found.decode(errors="replace") != here
    ]
