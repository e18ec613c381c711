"""The files of an artefact as its `config.json` tells of them, before any of them is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.artefact import (
    CARD,
    CONFIG,
    CONFIG_BYTES,
    FILES,
    METRICS,
    METRICS_BYTES,
    ArtefactError,
    describe,
    require_hashes,
)
from model.content import content_bytes
from model.description import CONTENT, ITEMS, MIXTURE, SCORED_ITEMS, SCORING, WEIGHTS
from model.items import items_bytes
from model.live.mixture import MOST_BYTES
from model.plain_file import read_plain
from model.weights import scoring_bytes, weights_bytes


@dataclass(frozen=True)
class Contents:
    """Attributes:
    where: the artefact's folder or URL, for messages.
    config: what `config.json` holds.
    most: bytes that each other file may have, by name.
    hashes: SHA-256 of those that decide a state or a score.
    """

    where: str
    config: bytes
    edition: str
    most: Mapping[str, int]
    hashes: Mapping[str, str]

    @classmethod
    def of(cls, config: bytes, where: str) -> Contents:
        """Raises ArtefactError: it is no `config.json` that this version reads."""
        found = describe(config, f"{where}/{CONFIG}")
        architecture, scoring, hashes = found.config, found.scoring, found.files
        bounds = {
            WEIGHTS: weights_bytes(architecture),
            ITEMS: items_bytes(architecture.n_items),
            METRICS: METRICS_BYTES,
            CARD: METRICS_BYTES,
            MIXTURE: MOST_BYTES,
            CONTENT: content_bytes(architecture.d_model),
        }
        if scoring is not None:
            bounds[SCORING] = scoring_bytes(scoring.n_items, architecture.d_model)
            bounds[SCORED_ITEMS] = items_bytes(scoring.n_items)
        most = {name: bounds[name] for name in (*hashes, METRICS, CARD)}
        return cls(where, config, found.edition, most, hashes)

    @classmethod
    def of_folder(cls, folder: Path) -> Contents:
        """Raises ArtefactError: its `config.json` can't be read."""
        try:
            config = read_plain(folder / CONFIG, CONFIG_BYTES, within=folder)
        except OSError as error:
            raise ArtefactError(f"{folder / CONFIG}: {error.strerror}") from None
        return cls.of(config, str(folder))

    def files(self, sizes: Mapping[str, int]) -> list[str]:
        """The files to take, `config.json` not among them, where those of these sizes lie.

        Raises:
            ArtefactError: one is missing, or larger than it may be.
        """
        for name, most in self.most.items():
            if name not in sizes and name != CARD:
                raise ArtefactError(f"{self.where}/{name} is missing: the artefact is incomplete")
            if sizes.get(name, 0) > most:
                raise ArtefactError(
                    f"{self.where}/{name} has {sizes[name]:,} bytes: at most {most:,} are read"
                )
        return [name for name in self.most if name in sizes]

    def require_in(self, folder: Path) -> None:
        """Raises ArtefactError unless the files in a folder have the hashes."""
        require_hashes(folder, self.hashes, self.where)


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of what lies in a folder by an artefact's names."""
    return {name: (folder / name).stat().st_size for name in FILES if (folder / name).exists()}
