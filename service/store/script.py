"""Commands for a server of the store, the calls of Lua scripts among them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import NamedTuple

Word = str | bytes | int


@dataclass(frozen=True)
class Script:
    """A Lua script on one key. A server knows it by its SHA-1 once it has been sent the source.

    Attributes:
        durable: a call is acknowledged only when `replica_acks` replicas have what it wrote. It
            must write something whenever its answer rests on a write, be it of another
            connection: `WAIT` reaches back from the last write of its own.
    """

    source: str
    durable: bool = False

    @classmethod
    def read(
        cls, name: str, package: str = "service.store", *, shebang: str = "", durable: bool = False
    ) -> Script:
        """The script in the file `<name>.lua` of a package; `shebang`: goes before it."""
        return cls(shebang + files(package).joinpath(f"{name}.lua").read_text("utf-8"), durable)

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def call(self, key: str, *arguments: Word) -> ScriptCall:
        return ScriptCall(self, ("EVALSHA", self.sha, 1, key, *arguments))


class ScriptCall(NamedTuple):
    """`words`: what is sent."""

    script: Script
    words: tuple[Word, ...]

    def with_source(self) -> ScriptCall:
        """For a server that may not know the script."""
        return ScriptCall(self.script, ("EVAL", self.script.source, *self.words[2:]))


Command = Sequence[Word] | ScriptCall

_KEYLESS = frozenset({"PING", "WAIT", "INFO", "TIME", "SCAN", "FLUSHALL", "CLUSTER"})
_KEY_AT = {"EVAL": 3, "EVALSHA": 3, "MEMORY": 2}


def words(command: Command) -> tuple[Word, ...]:
    """What is sent."""
    return command.words if isinstance(command, ScriptCall) else tuple(command)


def key(command: Command) -> bytes | None:
    """The key it is about, which decides the node of a Cluster; None: it has none."""
    sent = words(command)
    name = str(sent[0])
    if name in _KEYLESS:
        return None
    found = sent[_KEY_AT.get(name, 1)]
    return found if isinstance(found, bytes) else str(found).encode()
