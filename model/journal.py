"""The journal of the models that were trained: `journal.jsonl` beside them, a JSON object a line.

A line that is not whole, as after a full disk, is no entry.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FILE = "journal.jsonl"

Step = Literal["scoring", "warm", "scratch"]
"""New scoring vectors and mixture, which touch no state; a warm start; training from nothing."""

What = Literal[
    "published", "trial", "promoted", "taken back", "rolled back", "pruned", "refused", "failed",
    "given up",
]  # fmt: skip
"""On trial for a share of the users; promoted: for all of them; taken back by the learner or by the
trial; rolled back by a person; refused by the judge; failed, and tried again; given up."""


@dataclass(frozen=True)
class Entry:
    """What became of a model.

    Attributes:
        at: UTC, ISO 8601.
        round: what was under way.
        model: its name in the models folder.
        parent: name of the model it was trained from and judged against.
        until: of the newest event it was trained on.
        events: new ones since the parent's.
        figures: as the judge has them.
        seconds: of each part of the round.
        replaced: name of the model that everybody had before; None: what the service started with.
    """

    at: str
    what: What
    round: str | None = None
    model: str | None = None
    step: Step | None = None
    parent: str | None = None
    edition: str | None = None
    identity: str | None = None
    until: str | None = None
    events: int | None = None
    verdict: str | None = None
    figures: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] | None = None
    reason: str | None = None
    replaced: str | None = None

    @property
    def line(self) -> bytes:
        """As the file has it."""
        said = {
            name: value for name, value in dataclasses.asdict(self).items() if value is not None
        }
        return json.dumps(said).encode() + b"\n"


def entries_of(content: bytes, newest: int | None = None) -> list[Entry]:
    """Those of a file, the oldest first; of its last lines, if `newest` says of how many."""
    lines = content.split(b"\n")[:-1]
    known = {field.name for field in dataclasses.fields(Entry)}
    found = []
    for line in lines if newest is None else lines[max(0, len(lines) - newest) :]:
        try:
            said = json.loads(line)
            found.append(Entry(**{name: said[name] for name in said if name in known}))
        except (ValueError, TypeError):  # a line of a disk that was full
            continue
    return found
