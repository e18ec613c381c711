"""What an artefact's `config.json` says: the model's architecture, and the hashes of the other
files."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from model.config import MOST_ITEMS, ConfigError, ModelConfig
from model.kinds import KindRules
from model.state import StateLayout
from model.strict_json import is_number

FORMAT = 1
WEIGHTS, ITEMS, MIXTURE = "model.safetensors", "items.json", "mixture.safetensors"
SCORING, SCORED_ITEMS = "scoring.safetensors", "scoring.json"
CONTENT = "content.safetensors"
_SHA256 = re.compile("[0-9a-f]{64}")


class DescriptionError(ValueError):
    """A `config.json` that no artefact has; one line that says why."""


@dataclass(frozen=True)
class ScoringFiles:
    """n_items: V', of both; hashes: by name."""

    n_items: int
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class Description:
    """hashes: of the weights and the items. mixture, content: the file's hash. None: there is no
    such file. kinds: by which rows of the log it was trained; None: by all, or it is not known."""

    config: ModelConfig
    repeat_bias: float
    hashes: Mapping[str, str]
    mixture: str | None = None
    scoring: ScoringFiles | None = None
    kinds: KindRules | None = None
    content: str | None = None

    @property
    def identity(self) -> str:
        """Names everything that decides a state."""
        return identity_of(self.config, self.repeat_bias, self.hashes)

    @property
    def edition(self) -> str:
        """Names what decides scores and no state, too."""
        return edition_of(self.identity, self.mixture, self.scoring, self.content)

    @property
    def files(self) -> dict[str, str]:
        """The SHA-256 of each file that decides a state or a score, by its name."""
        found = dict(self.hashes)
        if self.mixture is not None:
            found[MIXTURE] = self.mixture
        if self.content is not None:
            found[CONTENT] = self.content
        return found if self.scoring is None else found | dict(self.scoring.hashes)

    def to_dict(self, layout: StateLayout) -> dict[str, Any]:
        """As JSON has it. layout: of the model's states."""
        found: dict[str, Any] = {
            "format": FORMAT,
            "identity": self.identity,
            "architecture": self.config.to_dict(),
            "repeat_bias": self.repeat_bias,
            "state": {
                "hash": layout.hash.hex(),
                "bytes": layout.nbytes(),
                "parts": {p.name: list(p.shape) for p in layout.parts},
            },
            "hashes": self.hashes,
        }
        if self.mixture is not None:
            found["mixture"] = self.mixture
        if self.content is not None:
            found["content"] = self.content
        if self.scoring is not None:
            found["scoring"] = asdict(self.scoring)
        if self.kinds is not None:
            found["kinds"] = str(self.kinds)
        return found

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Description:
        """Of JSON values. Raises DescriptionError: they are of another format, or do not fit each
        other."""
        found = values.get("format")
        if type(found) is not int or found != FORMAT:
            raise DescriptionError(
                f"format {reprlib.repr(found)}, this version reads {FORMAT}: upgrade tim4rec or "
                "train again"
            )
        hashes = values.get("hashes")
        if (
            not isinstance(hashes, dict)
            or set(hashes) != {WEIGHTS, ITEMS}
            or not all(isinstance(value, str) for value in hashes.values())
        ):
            raise DescriptionError(f"`hashes` must have one of {WEIGHTS} and one of {ITEMS}")
        try:
            config = ModelConfig.from_dict(values.get("architecture"))
        except ConfigError as error:
            raise DescriptionError(f"architecture: {error}") from None
        bias = values.get("repeat_bias", 0.0)
        if not is_number(bias) or abs(bias) > torch.finfo(torch.float32).max:
            raise DescriptionError(f"repeat_bias must be a number, not {reprlib.repr(bias)}")
        if values.get("identity") != identity_of(config, bias, hashes):
            raise DescriptionError(
                "the architecture or the repeat_bias is not the one that these weights were saved "
                "with"
            )
        return cls(
            config, float(bias), hashes, _file_hash(values, "mixture"), _scoring(values),
            _kinds(values), _file_hash(values, "content"),
        )  # fmt: skip


def claimed_edition_of(values: dict[str, Any]) -> str:
    """The edition that JSON values claim; raises DescriptionError: they claim none."""
    claimed = values.get("identity")
    if not isinstance(claimed, str) or len(claimed) > 64:
        raise DescriptionError(f"`identity` is {reprlib.repr(claimed)}")
    return edition_of(
        claimed, _file_hash(values, "mixture"), _scoring(values), _file_hash(values, "content")
    )


def identity_of(config: ModelConfig, repeat_bias: float, hashes: Mapping[str, str]) -> str:
    # Dropout is no part of what is served; everything else decides a state, or a score by it.
    served = {k: v for k, v in config.to_dict().items() if "dropout" not in k}
    if repeat_bias:
        served["repeat_bias"] = repeat_bias
    if config.n_groups == 1:  # one that came later keeps the identities of what was there before
        del served["n_groups"]
    text = json.dumps([FORMAT, served, hashes], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def edition_of(
    identity: str, mixture: str | None, scoring: ScoringFiles | None, content: str | None = None
) -> str:
    """mixture, content: their hashes."""
    # What came later keeps the editions of what was there before.
    digest = mixture
    for part in (None if scoring is None else asdict(scoring), content):
        if part is not None:
            text = json.dumps([digest, part], sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()
    return identity if digest is None else f"{identity}+{digest[:8]}"


def _file_hash(values: dict[str, Any], name: str) -> str | None:
    found = values.get(name)
    if found is not None and not _is_hash(found):
        raise DescriptionError(f"`{name}` must be a hash, not {reprlib.repr(found)}")
    return found


def _scoring(values: dict[str, Any]) -> ScoringFiles | None:
    found = values.get("scoring")
    if found is None:
        return None
    n_items, hashes = (found.get(key) if isinstance(found, dict) else 0 for key in _OF_SCORING)
    if (
        type(n_items) is not int
        or not 1 <= n_items <= MOST_ITEMS
        or not isinstance(hashes, dict)
        or set(hashes) != {SCORING, SCORED_ITEMS}
        or not all(map(_is_hash, hashes.values()))
    ):
        raise DescriptionError(
            f"`scoring` must have `n_items` and `hashes` of {SCORING} and {SCORED_ITEMS}, not "
            f"{reprlib.repr(found)}"
        )
    return ScoringFiles(n_items, hashes)


_OF_SCORING = "n_items", "hashes"


def _kinds(values: dict[str, Any]) -> KindRules | None:
    found = values.get("kinds")
    if found is None:
        return None
    try:
        return KindRules.parse(found if isinstance(found, str) else "not")
    except ValueError:
        raise DescriptionError(
            f"`kinds` must be rules such as view:step,*:count, not {reprlib.repr(found)}"
        ) from None


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None
