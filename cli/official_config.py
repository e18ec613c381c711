"""The settings of the official implementation that decide a model."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from cli.console import CommandError
from cli.plain_text import parse_json, read_text

SETTINGS: dict[str, type] = {
    "hidden_size": int,
    "num_layers": int,
    "expand": int,
    "head_dim": int,
    "d_state": int,
    "d_conv": int,
    "is_ffn": bool,
    "dropout_prob": float,
    "norm_eps": float,
    "is_time": bool,
    "MAX_ITEM_LIST_LENGTH": int,
    "p2p_residual": bool,
    "time_drop_out": float,
}
"""The official settings that decide the model."""

CONFIG_BYTES = 1 << 17
"""Most of an official config; a few thousand are usual."""
_DEEPEST = 20  # of a config as YAML


def settings_of(config: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The settings that matter, each of its type. Raises CommandError naming the one that isn't."""
    chosen: dict[str, Any] = {}
    for name, kind in SETTINGS.items():
        value = config.get(name)
        if value is None:
            continue
        try:
            if isinstance(value, bool) != (kind is bool) or not isinstance(
                value, int | float | str
            ):
                raise ValueError
            chosen[name] = kind(value)
            if not math.isfinite(float(value)) or (kind is int and chosen[name] != float(value)):
                raise ValueError
        except (ValueError, OverflowError):
            wanted = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
            raise CommandError(
                f"{source}: {name} must be {wanted}, not {reprlib.repr(value)}"
            ) from None
    return chosen


def read_config(path: Path) -> Mapping[str, Any]:
    """An official config in JSON or YAML. Raises CommandError."""
    text = read_text(path, CONFIG_BYTES)
    if path.suffix == ".json":
        value = parse_json(path, text)
    else:
        try:
            yaml = import_module("yaml")
        except ImportError:
            raise CommandError(
                f"{path}: reading YAML needs PyYAML: install pyyaml, or give the config as .json"
            ) from None
        try:
            _require_plain_yaml(yaml, text)
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise CommandError(f"{path}: not readable as YAML: {reason}") from None
    if not isinstance(value, dict):
        raise CommandError(f"{path}: must hold settings by name, such as hidden_size: 64")
    if not SETTINGS.keys() & value.keys():
        raise CommandError(f"{path}: none of the official settings in it ({', '.join(SETTINGS)})")
    return value


def _require_plain_yaml(yaml: Any, text: str) -> None:
    """Raises ValueError before what takes long to read, or grows without end in memory."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("an alias (*name) in it: write its value out")
