"""A trained model as a folder of plain files, and its identity.

`config.json` (architecture, state layout, identity, hashes, rules for kinds), `model.safetensors`,
`items.json` (vocabulary, popularity, optional titles and categories), `metrics.json`, `README.md`
(the model card), and what decides scores and no state, each optional: `mixture.safetensors` (how
scores and evidence join), `content.safetensors` (the vectors of new items, by what they are),
`scoring.safetensors` and `scoring.json` (what is scored, where it is not the vocabulary by its
input vectors). Nothing is pickled.

Whoever made a folder, it is loaded whole or refused: `config.json` is read first, and no more of
the other files than it says that there is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.content import Content, ContentError, content_bytes
from model.description import (
    CONTENT,
    ITEMS,
    MIXTURE,
    SCORED_ITEMS,
    SCORING,
    WEIGHTS,
    Description,
    DescriptionError,
    ScoringFiles,
    claimed_edition_of,
    edition_of,
)
from model.folder import replace_folder
from model.items import Items, items_bytes, read_items
from model.kinds import KindRules
from model.live.mixture import MOST_BYTES as MIXTURE_BYTES
from model.live.mixture import Mixture, MixtureError
from model.plain_file import open_plain, read_plain
from model.scoring import Scoring
from model.strict_json import parse
from model.tensor_file import write_tensors
from model.tim4rec import TiM4Rec
from model.times import parse_time
from model.weights import WeightsError, read_scoring, read_weights

CONFIG, METRICS, CARD = "config.json", "metrics.json", "README.md"
FILES = (CONFIG, WEIGHTS, ITEMS, METRICS, CARD, MIXTURE, CONTENT, SCORING, SCORED_ITEMS)

CONFIG_BYTES = 1 << 16
"""Most of `config.json`; 2,000 are usual. The list of models reads many of them."""
METRICS_BYTES = 1 << 20
"""Most of `metrics.json`; a hundredth of it is usual."""
_STATE_BYTES = 1 << 20  # a user's state may have so many, and as many as the weights
_REPLACED_FOR_S = 60.0


class ArtefactError(ValueError):
    """A folder that can't be served; one line that names the file and the fix."""


@dataclass(frozen=True)
class Artefact:
    """A loaded artefact.

    items: the vocabulary. identity: names everything that decides a state. mixture_hash,
    content_hash, scoring_files: of what decides scores only; None: there is none. kinds: by which
    rows of the log it was trained; None: by all, or it is not known.
    """

    model: TiM4Rec
    items: Items
    metrics: dict[str, Any]
    identity: str
    folder: Path
    mixture: Mixture | None = None
    mixture_hash: str | None = None
    scoring_files: ScoringFiles | None = None
    kinds: KindRules | None = None
    content_hash: str | None = None

    @property
    def until_ms(self) -> int | None:
        """The time of the newest interaction that it was trained on, as its metrics say.

        Raises ValueError where they say no time.
        """
        return self._time("until")

    @property
    def core_until_ms(self) -> int | None:
        """As `until_ms`, but for what was trained apart from the core: scoring and mixture."""
        return self._time("core_until") or self.until_ms

    def _time(self, name: str) -> int | None:
        said = self.metrics.get(name)
        try:
            return None if said is None else parse_time(said)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None

    @property
    def edition(self) -> str:
        """Names what decides scores only, too: by another edition of the same identity, the same
        states are ranked otherwise."""
        return edition_of(self.identity, self.mixture_hash, self.scoring_files, self.content_hash)

    @property
    def scored_items(self) -> Items:
        """What is scored; the vocabulary comes first."""
        scoring = self.model.scoring
        return self.items if scoring is None else scoring.items

    def without_mixture(self) -> Artefact:
        """The same, ranked by the model alone; it has an edition of its own."""
        return replace(self, mixture=None, mixture_hash=None)


def save_artefact(
    folder: Path,
    model: TiM4Rec,
    items: Items,
    metrics: dict[str, Any],
    card: str,
    mixture: Mixture | None = None,
    kinds: KindRules | None = None,
) -> str:
    """Writes the folder as a whole: at any moment it is the old artefact or the new one.

    The model's scoring and content are written if it has them. Other files in the folder of an old
    artefact are kept.

    Returns:
        the identity.

    Raises:
        ArtefactError: `folder` holds something that is not an artefact, or the vocabulary
            does not fit the model, or is too long.
    """
    if len(items) != model.config.n_items:
        raise ArtefactError(f"{len(items)} items for a model of {model.config.n_items}")
    if model.scoring is not None:
        _require_beginning(folder / SCORED_ITEMS, model.scoring.items, items)
    folder = folder.resolve()
    _require_replaceable(folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o755, parents=True)
    try:
        write_tensors(partial / WEIGHTS, model.state_dict())
        _write_items(partial / ITEMS, items)
        _write_json(partial / METRICS, metrics)
        (partial / CARD).write_text(card, encoding="utf-8")
        if mixture is not None:
            (partial / MIXTURE).write_bytes(mixture.to_bytes())
        if model.content is not None:
            (partial / CONTENT).write_bytes(model.content.to_bytes())
        if model.scoring is not None:
            write_tensors(partial / SCORING, model.scoring.tensors())
            _write_items(partial / SCORED_ITEMS, model.scoring.items)
        description = _describe(partial, model, mixture, kinds)
        _write_json(partial / CONFIG, description.to_dict(model.state_layout))
        # safetensors writes for the owner alone; the service may be another user. Nobody else is
        # to write: it is what will be served.
        mode = (partial / CONFIG).stat().st_mode & ~0o022
        for file in partial.iterdir():
            file.chmod(mode)
        replace_folder(partial, folder, keep_others_than=FILES)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return description.identity


def load_artefact(folder: Path | str, device: torch.device | str = "cpu") -> Artefact:
    """Loads a folder, checking every hash before anything of it is believed.

    What the files claim is compared with each other and with their sizes before memory is taken
    for it. A link in place of a file may not lead out of the folder.

    Raises:
        ArtefactError: a file is missing, damaged, of a newer format, or does not fit.
    """
    folder = Path(folder)
    until: float | None = None
    while True:
        before, artefact = _stamp(folder), None
        fault = ArtefactError(f"{folder} is replaced again and again: leave it as it is")
        try:
            artefact = _load(folder, device)
        except ArtefactError as error:
            fault = error
        except OSError as error:
            fault = _fault(folder, error)
        same = _stamp(folder) == before
        if same and artefact is not None:
            return artefact
        # Replaced while it was read: what was read may be half of each.
        until = until or time.monotonic() + _REPLACED_FOR_S
        if same or time.monotonic() > until:
            raise fault


def claimed_edition(folder: Path) -> str:
    """The edition that a folder's `config.json` claims; nothing of it is checked.

    Raises:
        ArtefactError: it claims none.
    """
    try:
        content = read_plain(folder / CONFIG, CONFIG_BYTES, within=folder)
    except OSError as error:
        raise _fault(folder, error) from None
    return edition_claimed_by(content, folder / CONFIG)


def edition_claimed_by(content: bytes, path: Path | str) -> str:
    """As `claimed_edition`, of the `config.json` that was read from a path or a URL."""
    try:
        return claimed_edition_of(_object(content, path))
    except DescriptionError as error:
        raise ArtefactError(f"{path}: {error}") from None


def describe(content: bytes, path: Path | str) -> Description:
    """Of the `config.json` that was read from a path or a URL.

    Raises:
        ArtefactError: it is none that this version reads.
    """
    try:
        return Description.from_dict(_object(content, path))
    except DescriptionError as error:
        raise ArtefactError(f"{path}: {error}") from None


def require_hashes(folder: Path, hashes: Mapping[str, str], where: str) -> None:
    """Raises ArtefactError, which names the file by `where`, unless files of a folder have these
    SHA-256."""
    for name, expected in hashes.items():
        if _hash(folder / name) != expected:
            raise ArtefactError(f"{where}/{name}: its hash is not the one in {CONFIG}: damaged")


def _fault(folder: Path, error: OSError) -> ArtefactError:
    path = error.filename or folder
    if isinstance(error, FileNotFoundError):
        return ArtefactError(f"{path} is missing: the artefact is incomplete")
    return ArtefactError(f"{path}: {error.strerror or error}")


def _stamp(folder: Path) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for name in FILES:
        try:
            status = (folder / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return found


def _load(folder: Path, device: torch.device | str) -> Artefact:
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder; make one with `tim4rec train`")
    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    values = _read_json(config_file)
    try:
        description = Description.from_dict(values)
    except DescriptionError as error:
        raise ArtefactError(f"{config_file}: {error}") from None
    config, hashes = description.config, description.hashes
    metrics = _read_json(folder / METRICS, METRICS_BYTES, constants=True)
    try:
        model = read_weights(weights_file, config, hashes[WEIGHTS])
    except WeightsError as error:
        raise ArtefactError(f"{weights_file}: {error}") from None
    model.repeat_bias = description.repeat_bias
    _require_state(config_file, values.get("state"), model)
    # Only now is it known that there are so many items.
    items = _read_items(folder / ITEMS, config.n_items, hashes[ITEMS])
    if description.scoring is not None:
        scoring = _read_scoring(folder, description.scoring, items, config.d_model)
        model.scoring = scoring.to(device)
    if description.content is not None:
        model.content = _read_content(folder / CONTENT, config.d_model, description.content)
    mixture = description.mixture
    return Artefact(
        model=model.to(device).eval(),
        items=items,
        metrics=metrics,
        identity=description.identity,
        folder=folder,
        mixture=None if mixture is None else _read_mixture(folder / MIXTURE, mixture),
        mixture_hash=mixture,
        scoring_files=description.scoring,
        kinds=description.kinds,
        content_hash=description.content,
    )


def _describe(
    folder: Path, model: TiM4Rec, mixture: Mixture | None, kinds: KindRules | None
) -> Description:
    """Of the files that are there."""
    scoring = model.scoring
    return Description(
        model.config,
        model.repeat_bias,
        {name: _hash(folder / name) for name in (WEIGHTS, ITEMS)},
        None if mixture is None else _hash(folder / MIXTURE),
        None
        if scoring is None
        else ScoringFiles(
            len(scoring.items), {name: _hash(folder / name) for name in (SCORING, SCORED_ITEMS)}
        ),
        kinds,
        None if model.content is None else _hash(folder / CONTENT),
    )


def _read_items(path: Path, n_items: int, expected: str) -> Items:
    table = _read_hashed(path, items_bytes(n_items), expected)
    try:
        return read_items(table, n_items)
    except ValueError as error:
        raise ArtefactError(f"{path}: {error}") from None


def _read_scoring(folder: Path, files: ScoringFiles, known: Items, width: int) -> Scoring:
    # The items are no more than their bytes, so the vectors are no more than what is there.
    items = _read_items(folder / SCORED_ITEMS, files.n_items, files.hashes[SCORED_ITEMS])
    _require_beginning(folder / SCORED_ITEMS, items, known)
    try:
        return read_scoring(folder / SCORING, items, width, files.hashes[SCORING])
    except WeightsError as error:
        raise ArtefactError(f"{folder / SCORING}: {error}") from None


def _require_beginning(path: Path, items: Items, known: Items) -> None:
    if items.ids[: len(known)] != known.ids:
        raise ArtefactError(f"{path}: it does not begin with the items of {ITEMS}")


def _read_mixture(path: Path, expected: str) -> Mixture:
    try:
        return Mixture.from_bytes(_read_hashed(path, MIXTURE_BYTES, expected))
    except MixtureError as error:
        raise ArtefactError(f"{path}: {error}") from None


def _read_content(path: Path, width: int, expected: str) -> Content:
    try:
        return Content.from_bytes(_read_hashed(path, content_bytes(width), expected), width)
    except ContentError as error:
        raise ArtefactError(f"{path}: {error}") from None


def _read_hashed(path: Path, most: int, expected: str) -> bytes:
    content = read_plain(path, most, within=path.parent)
    if hashlib.sha256(content).hexdigest() != expected:
        raise ArtefactError(f"{path}: its hash is not the one in {CONFIG}: damaged")
    return content


def _require_state(path: Path, state: object, model: TiM4Rec) -> None:
    layout = model.state_layout
    if not isinstance(state, dict) or state.get("hash") != layout.hash.hex():
        raise ArtefactError(f"{path}: its state layout is not this version's: train again")
    # Two sizes of a few weights each may multiply to any state.
    if layout.nbytes() > max(_STATE_BYTES, sum(t.nbytes for t in model.state_dict().values())):
        raise ArtefactError(
            f"{path}: architecture: a user's state has {layout.nbytes():,} bytes, more than all "
            "weights: lower d_state"
        )


def _require_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArtefactError(f"{folder} is a file: choose another folder")
    if not any(folder.iterdir()):
        return
    try:
        is_artefact = {"format", "architecture", "hashes"} <= set(_read_json(folder / CONFIG))
    except (ArtefactError, OSError):
        is_artefact = False
    if not is_artefact:
        raise ArtefactError(f"{folder} is not empty and not an artefact: choose another folder")


def _hash(path: Path) -> str:
    with open_plain(path, within=path.parent) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_items(path: Path, items: Items) -> None:
    _write_json(path, items.to_columns(), indent=None)
    if (found := path.stat().st_size) > (most := items_bytes(len(items))):
        raise ArtefactError(
            f"{path.name} would have {found:,} bytes, at most {most:,} are read: shorten titles "
            "and categories"
        )


def _write_json(path: Path, value: object, *, indent: int | None = 2) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    path.write_text(text + "\n", encoding="utf-8")


def _read_json(path: Path, most: int = CONFIG_BYTES, *, constants: bool = False) -> dict[str, Any]:
    return _object(read_plain(path, most, within=path.parent), path, constants=constants)


def _object(content: bytes, path: Path | str, *, constants: bool = False) -> dict[str, Any]:
    try:
        value = parse(content, constants=constants)
    except ValueError as error:
        raise ArtefactError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: must hold a JSON object")
    return value
