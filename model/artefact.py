"""A trained model as a folder of plain files, and its identity.

`config.json` (architecture, state layout, identity, hashes), `model.safetensors`, `items.json`
(vocabulary, popularity, optional titles and categories), `metrics.json`, `README.md` (the
model card). Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from model.folder import replace_folder
from model.tim4rec import TiM4Rec

FORMAT = 1
CONFIG, WEIGHTS, ITEMS, METRICS, CARD = (
    "config.json",
    "model.safetensors",
    "items.json",
    "metrics.json",
    "README.md",
)
FILES = (CONFIG, WEIGHTS, ITEMS, METRICS, CARD)


class ArtefactError(ValueError):
    """A folder that can't be served; one line that names the file and the fix."""


@dataclass(frozen=True)
class Items:
    """The vocabulary: entry i describes item index i + 1.

    Attributes:
        ids: the caller's own strings, unique.
        popularity: (V,) int64, interactions of each item in the training part.
        titles, categories: one each an item, or None when there is no item table.
    """

    ids: list[str]
    popularity: NDArray[np.int64]
    titles: list[str | None] | None = None
    categories: list[list[str]] | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(item, str) for item in self.ids):
            raise ArtefactError("items: an id is not a string")
        if len(set(self.ids)) != len(self.ids):
            raise ArtefactError("items: an id stands there twice")
        for name, column in (
            ("popularity", self.popularity),
            ("titles", self.titles),
            ("categories", self.categories),
        ):
            if column is not None and len(column) != len(self.ids):
                raise ArtefactError(
                    f"items: {len(column)} {name} for {len(self.ids)} ids: one each is needed"
                )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Artefact:
    """A loaded artefact; `identity` is the hash of everything that decides a state or a score."""

    model: TiM4Rec
    items: Items
    metrics: dict[str, Any]
    identity: str
    folder: Path


def save_artefact(
    folder: Path, model: TiM4Rec, items: Items, metrics: dict[str, Any], card: str
) -> str:
    """Writes the folder as a whole: at any moment it is the old artefact or the new one.

    Other files in the folder of an old artefact are kept.

    Returns:
        the identity.

    Raises:
        ArtefactError: `folder` holds something that is not an artefact, or the vocabulary
            does not fit the model.
    """
    if len(items) != model.config.n_items:
        raise ArtefactError(f"{len(items)} items for a model of {model.config.n_items}")
    folder = folder.resolve()
    _require_replaceable(folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o755, parents=True)
    try:
        weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        save_file(weights, partial / WEIGHTS)
        _write_json(
            partial / ITEMS,
            {
                "ids": items.ids,
                "popularity": items.popularity.tolist(),
                "titles": items.titles,
                "categories": items.categories,
            },
        )
        _write_json(partial / METRICS, metrics)
        (partial / CARD).write_text(card, encoding="utf-8")
        hashes = {name: _hash(partial / name) for name in (WEIGHTS, ITEMS)}
        identity = _identity(model.config, model.repeat_bias, hashes)
        description = {
            "format": FORMAT,
            "identity": identity,
            "architecture": model.config.to_dict(),
            "repeat_bias": model.repeat_bias,
            "state": {
                "hash": model.state_layout.hash.hex(),
                "bytes": model.state_layout.nbytes(),
                "parts": {p.name: list(p.shape) for p in model.state_layout.parts},
            },
            "hashes": hashes,
        }
        _write_json(partial / CONFIG, description)
        # safetensors writes for the owner alone; the service may be another user. Nobody else is
        # to write: it is what will be served.
        mode = (partial / CONFIG).stat().st_mode & ~0o022
        for name in FILES:
            (partial / name).chmod(mode)
        replace_folder(partial, folder, keep_others_than=FILES)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return identity


def load_artefact(folder: Path | str, device: torch.device | str = "cpu") -> Artefact:
    """Loads a folder, checking every hash before anything of it is believed.

    Raises:
        ArtefactError: a file is missing, damaged, of a newer format, or does not fit.
    """
    folder = Path(folder)
    while True:
        before = _stamp(folder)
        try:
            artefact = _load(folder, device)
        except (ArtefactError, OSError):
            if _stamp(folder) == before:
                raise
        else:
            if _stamp(folder) == before:
                return artefact
        # Replaced while it was read: what was read may be half of each.


def _stamp(folder: Path) -> tuple[int, int] | None:
    try:
        found = (folder / CONFIG).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _load(folder: Path, device: torch.device | str) -> Artefact:
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder; make one with `tim4rec train`")
    for name in (CONFIG, WEIGHTS, ITEMS, METRICS):
        if not (folder / name).is_file():
            raise ArtefactError(f"{folder / name} is missing: the artefact is incomplete")
    description = _read_json(folder / CONFIG)
    if description.get("format") != FORMAT:
        raise ArtefactError(
            f"{folder / CONFIG}: format {description.get('format')!r}, this version reads "
            f"{FORMAT}: upgrade tim4rec or train again"
        )
    hashes = description.get("hashes")
    if not isinstance(hashes, dict) or set(hashes) != {WEIGHTS, ITEMS}:
        raise ArtefactError(f"{folder / CONFIG}: `hashes` must name {WEIGHTS} and {ITEMS}")
    for name, expected in hashes.items():
        if _hash(folder / name) != expected:
            raise ArtefactError(f"{folder / name}: its hash is not the one in {CONFIG}: damaged")
    try:
        config = ModelConfig.from_dict(description["architecture"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{folder / CONFIG}: architecture: {error}") from None
    bias = description.get("repeat_bias", 0.0)
    if not isinstance(bias, int | float) or not math.isfinite(bias):
        raise ArtefactError(f"{folder / CONFIG}: repeat_bias must be a number, not {bias!r}")
    identity = _identity(config, bias, hashes)
    if description.get("identity") != identity:
        raise ArtefactError(
            f"{folder / CONFIG}: the architecture or the repeat_bias is not the one that these "
            "weights were saved with"
        )
    try:
        model = TiM4Rec(config)
        model.load_state_dict(load_file(folder / WEIGHTS))
        model.repeat_bias = float(bias)
    except (TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ArtefactError(f"{folder / WEIGHTS} does not fit the architecture: {reason}") from None
    state = description.get("state")
    if not isinstance(state, dict) or state.get("hash") != model.state_layout.hash.hex():
        raise ArtefactError(
            f"{folder / CONFIG}: its state layout is not this version's: train again"
        )
    items = _read_items(folder / ITEMS)
    if len(items) != config.n_items:
        raise ArtefactError(f"{folder / ITEMS}: {len(items)} items, the model has {config.n_items}")
    return Artefact(
        model=model.to(device).eval(),
        items=items,
        metrics=_read_json(folder / METRICS),
        identity=identity,
        folder=folder,
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
    except ArtefactError:
        is_artefact = False
    if not is_artefact:
        raise ArtefactError(f"{folder} is not empty and not an artefact: choose another folder")


def _identity(config: ModelConfig, repeat_bias: float, hashes: dict[str, str]) -> str:
    # Dropout is no part of what is served; everything else decides a state or a score.
    served = {k: v for k, v in config.to_dict().items() if "dropout" not in k}
    if repeat_bias:
        served["repeat_bias"] = repeat_bias
    if config.n_groups == 1:  # one that came later keeps the identities of what was there before
        del served["n_groups"]
    text = json.dumps([FORMAT, served, hashes], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=None if path.name == ITEMS else 2)
    path.write_text(text + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ArtefactError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: must hold a JSON object")
    return value


def _read_items(path: Path) -> Items:
    table = _read_json(path)
    try:
        return Items(
            ids=table["ids"],
            popularity=np.asarray(table["popularity"], dtype=np.int64),
            titles=table["titles"],
            categories=table["categories"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path}: {error}") from None
