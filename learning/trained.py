"""What an artefact's folder says of itself, as far as the learner needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.artefact import CONFIG, CONFIG_BYTES, METRICS, METRICS_BYTES, claimed_edition
from model.plain_file import read_plain
from model.strict_json import parse
from model.times import parse_time


@dataclass(frozen=True)
class Trained:
    """Attributes:
    until_ms: of the newest event it was trained on. Where it doesn't say: when its files were
        written, as it can't know anything later.
    """

    identity: str
    edition: str
    until_ms: int

    @classmethod
    def read(cls, folder: Path) -> Trained:
        """Raises OSError, ValueError: it is no artefact."""
        config = parse(read_plain(folder / CONFIG, CONFIG_BYTES))
        metrics = parse(read_plain(folder / METRICS, METRICS_BYTES), constants=True)
        until = metrics.get("until")
        written_ms = (folder / CONFIG).stat().st_mtime_ns // 1_000_000
        return cls(
            str(config.get("identity")),
            claimed_edition(folder),
            written_ms if until is None else parse_time(until),
        )
