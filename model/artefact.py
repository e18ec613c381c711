"""A trained model as a folder of plain files, and its identity.

`config.json` (architecture, state layout, identity, hashes), `model.safetensors`, `items.json`
(vocabulary, popularity, optional titles and categories), `mixture.safetensors` (how scores and
evidence join; optional), `metrics.json`, `README.md` (the model card). Nothing is pickled.

Whoever made a folder, it is loaded whole or refused: `config.json` is read first, and no more of
the other files than it says that there is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.config import ConfigError, ModelConfig
from model.folder import replace_folder
from model.items import Items, items_bytes, read_items
from model.live.mixture import MOST_BYTES as MIXTURE_BYTES
from model.live.mixture import Mixture, MixtureError
from model.plain_file import open_plain, read_plain
from model.strict_json import is_number, parse
from model.tim4rec import TiM4Rec
from model.weights import WeightsError, read_weights

FORMAT = 1
CONFIG, WEIGHTS, ITEMS, METRICS, CARD, MIXTURE = (
    "config.json",
    "model.safetensors",
    "items.json",
    "metrics.json",
    "README.md",
    "mixture.safetensors",
)
FILES = (CONFIG, WEIGHTS, ITEMS, METRICS, CARD, MIXTURE)

CONFIG_BYTES = 1 << 16
"""Most of `config.json`; 2,000 are usual. The list of models reads many of them."""
METRICS_BYTES = 1 << 20
"""Most of `metrics.json`; a hundredth of it is usual."""
_STATE_BYTES = 1 << 20  # a user's state may have so many, and as many as the weights
_REPLACED_FOR_S = 60.0
_SHA256 = re.compile("[0-9a-f]{64}")


class ArtefactError(ValueError):
    """A folder that can't be served; one line that names the file and the fix."""


@dataclass(frozen=True)
class Artefact:
    """A loaded artefact.

    identity: the hash of everything that decides a state or a model's score. mixture_hash: of the
    mixture's file.
    """

    model: TiM4Rec
    items: Items
    metrics: dict[str, Any]
    identity: str
    folder: Path
    mixture: Mixture | None = None
    mixture_hash: str | None = None

    @property
    def edition(self) -> str:
        """Names the mixture too: with another one the same states are ranked otherwise."""
        return _edition(self.identity, self.mixture_hash)

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
) -> str:
    """Writes the folder as a whole: at any moment it is the old artefact or the new one.

    Other files in the folder of an old artefact are kept.

    Returns:
        the identity.

    Raises:
        ArtefactError: `folder` holds something that is not an artefact, or the vocabulary
            does not fit the model, or is too long.
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
        _write_json(partial / ITEMS, items.to_columns())
        if (found := (partial / ITEMS).stat().st_size) > (most := items_bytes(len(items))):
            raise ArtefactError(
                f"{ITEMS} would have {found:,} bytes, at most {most:,} are read: shorten titles "
                "and categories"
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
        if mixture is not None:
            (partial / MIXTURE).write_bytes(mixture.to_bytes())
            description["mixture"] = _hash(partial / MIXTURE)
        _write_json(partial / CONFIG, description)
        # safetensors writes for the owner alone; the service may be another user. Nobody else is
        # to write: it is what will be served.
        mode = (partial / CONFIG).stat().st_mode & ~0o022
        for file in partial.iterdir():
            file.chmod(mode)
        replace_folder(partial, folder, keep_others_than=FILES)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return identity


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
    description = _object(content, path)
    claimed = description.get("identity")
    if not isinstance(claimed, str) or len(claimed) > 64:
        raise ArtefactError(f"{path}: `identity` is {reprlib.repr(claimed)}")
    return _edition(claimed, _mixture_hash(path, description))


def describe(content: bytes, path: Path | str) -> tuple[ModelConfig, str, dict[str, str]]:
    """Architecture, edition, and SHA-256 of the files that decide a state or a score, of the
    `config.json` that was read from a path or a URL.

    Raises:
        ArtefactError: it is none that this version reads.
    """
    description = _object(content, path)
    config, _, hashes = _read_description(path, description)
    mixture = _mixture_hash(path, description)
    hashes |= {} if mixture is None else {MIXTURE: mixture}
    return config, _edition(description["identity"], mixture), hashes


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
    for name in (CONFIG, WEIGHTS, ITEMS, METRICS, MIXTURE):
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
    config_file, weights_file, items_file = (folder / name for name in (CONFIG, WEIGHTS, ITEMS))
    description = _read_json(config_file)
    config, bias, hashes = _read_description(config_file, description)
    mixture_hash = _mixture_hash(config_file, description)
    metrics = _read_json(folder / METRICS, METRICS_BYTES, constants=True)
    try:
        model = read_weights(weights_file, config, hashes[WEIGHTS])
    except WeightsError as error:
        raise ArtefactError(f"{weights_file}: {error}") from None
    model.repeat_bias = bias
    _require_state(config_file, description.get("state"), model)
    # Only now is it known that there are so many items.
    table = read_plain(items_file, items_bytes(config.n_items), within=folder)
    if hashlib.sha256(table).hexdigest() != hashes[ITEMS]:
        raise ArtefactError(f"{items_file}: its hash is not the one in {CONFIG}: damaged")
    try:
        items = read_items(table, config.n_items)
    except ValueError as error:
        raise ArtefactError(f"{items_file}: {error}") from None
    return Artefact(
        model=model.to(device).eval(),
        items=items,
        metrics=metrics,
        identity=description["identity"],
        folder=folder,
        mixture=None if mixture_hash is None else _read_mixture(folder / MIXTURE, mixture_hash),
        mixture_hash=mixture_hash,
    )


def _read_mixture(path: Path, expected: str) -> Mixture:
    content = read_plain(path, MIXTURE_BYTES, within=path.parent)
    if hashlib.sha256(content).hexdigest() != expected:
        raise ArtefactError(f"{path}: its hash is not the one in {CONFIG}: damaged")
    try:
        return Mixture.from_bytes(content)
    except MixtureError as error:
        raise ArtefactError(f"{path}: {error}") from None


def _mixture_hash(path: Path | str, description: dict[str, Any]) -> str | None:
    found = description.get("mixture")
    if found is not None and not (isinstance(found, str) and _SHA256.fullmatch(found)):
        raise ArtefactError(f"{path}: `mixture` must be a hash, not {reprlib.repr(found)}")
    return found


def _edition(identity: str, mixture_hash: str | None) -> str:
    return identity if mixture_hash is None else f"{identity}+{mixture_hash[:8]}"


def _read_description(
    path: Path | str, description: dict[str, Any]
) -> tuple[ModelConfig, float, dict[str, str]]:
    """The architecture, the repeat bias and the hashes of `config.json`, which fit each other."""
    found = description.get("format")
    if type(found) is not int or found != FORMAT:
        raise ArtefactError(
            f"{path}: format {reprlib.repr(found)}, this version reads {FORMAT}: upgrade tim4rec "
            "or train again"
        )
    hashes = description.get("hashes")
    if (
        not isinstance(hashes, dict)
        or set(hashes) != {WEIGHTS, ITEMS}
        or not all(isinstance(value, str) for value in hashes.values())
    ):
        raise ArtefactError(f"{path}: `hashes` must have one of {WEIGHTS} and one of {ITEMS}")
    try:
        config = ModelConfig.from_dict(description.get("architecture"))
    except ConfigError as error:
        raise ArtefactError(f"{path}: architecture: {error}") from None
    bias = description.get("repeat_bias", 0.0)
    if not is_number(bias) or abs(bias) > torch.finfo(torch.float32).max:
        raise ArtefactError(f"{path}: repeat_bias must be a number, not {reprlib.repr(bias)}")
    if description.get("identity") != _identity(config, bias, hashes):
        raise ArtefactError(
            f"{path}: the architecture or the repeat_bias is not the one that these weights were "
            "saved with"
        )
    return config, float(bias), hashes


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
    with open_plain(path, within=path.parent) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=None if path.name == ITEMS else 2)
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
