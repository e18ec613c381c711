"""Reads weights of the official TiM4Rec implementation into our model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.config import ModelConfig
from model.strict_json import shown
from model.tim4rec import TiM4Rec, outline

OFFICIAL_FFN_EPS = 1e-12
"""The official feed-forward layer's LayerNorm ignores the configured eps."""

_PREFIXES = {
    "item_embedding.": "item_embedding.",
    "in_layer_norm.": "in_norm.",
    "layer_norm_time.": "time_encoder.norm.",
}
_LAYER_PREFIXES = {
    "ssd.in_proj.": "ssd.in_proj.",
    "ssd.conv1d.": "ssd.conv.",
    "ssd.norm.": "ssd.norm.",
    "ssd.out_proj.": "ssd.out_proj.",
    "ssd.conv1d4time_1.": "mixer.conv_1.",
    "ssd.conv1d4time_2.": "mixer.conv_2.",
    "ssd.mlp4time_scale.1.": "mixer.scale_in.",
    "ssd.mlp4time_scale.3.": "mixer.scale_out.",
    "ssd.time_gate_residual.1.": "mixer.gate.",
    "ssd.time_layer_norm.": "mixer.norm.",
    "ssd.": "ssd.",
    "layer_norm.": "ssd.out_norm.",
    "ffn.fc1.": "ffn.fc1.",
    "ffn.fc2.": "ffn.fc2.",
    "ffn.layer_norm.": "ffn.norm.",
}


class OfficialWeightsError(ValueError):
    """A checkpoint that does not match its configuration; the message names the tensor."""


def official_config(config: Mapping[str, Any], n_items: int) -> ModelConfig:
    """Our configuration of an official one (RecBole's names); missing ones have its defaults."""
    return ModelConfig(
        n_items=n_items,
        d_model=int(config.get("hidden_size", 64)),
        n_layers=int(config.get("num_layers", 2)),
        expand=int(config.get("expand", 2)),
        head_dim=int(config.get("head_dim", 32)),
        d_state=int(config.get("d_state", 32)),
        d_conv=int(config.get("d_conv", 4)),
        ffn=bool(config.get("is_ffn", True)),
        dropout=float(config.get("dropout_prob", 0.2)),
        norm_eps=float(config.get("norm_eps", 1e-12)),
        ffn_norm_eps=OFFICIAL_FFN_EPS,
        time="sequence" if config.get("is_time", True) else "none",
        max_len=int(config.get("MAX_ITEM_LIST_LENGTH", 50)),
        p2p_residual=bool(config.get("p2p_residual", False)),
        time_dropout=float(config.get("time_drop_out", 0.0)),
    )


def load_official(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> TiM4Rec:
    """Our model with official weights, in their precision and in evaluation mode.

    Args:
        config: the official run's configuration.
        state_dict: the official module's; item 0 is padding.

    Raises:
        OfficialWeightsError: a tensor is missing, unknown or of another shape.
    """
    if "item_embedding.weight" not in state_dict:
        raise OfficialWeightsError("item_embedding.weight is missing: not a TiM4Rec checkpoint")
    embedding = state_dict["item_embedding.weight"]
    ours_config = official_config(config, embedding.shape[0] - 1)
    wanted = {name: tensor.shape for name, tensor in outline(ours_config).state_dict().items()}
    weights: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        ours = _our_name(name)
        if ours not in wanted:
            raise OfficialWeightsError(f"{shown(name)} has no place in this configuration")
        if ours in weights:
            raise OfficialWeightsError(f"{shown(name)} stands there by another name, too")
        if tensor.dim() == 3 and tensor.shape[1] == 1:  # a depthwise Conv1d's (C, 1, K)
            tensor = tensor[:, 0]
        if tensor.shape != wanted[ours]:
            raise OfficialWeightsError(
                f"{name} is {tuple(tensor.shape)}, the configuration asks for {tuple(wanted[ours])}"
            )
        weights[ours] = tensor
    if missing := sorted(set(wanted) - set(weights)):
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise OfficialWeightsError(f"the checkpoint lacks {', '.join(missing[:5])}{more}")
    model = TiM4Rec(ours_config).to(embedding.dtype)
    model.load_state_dict(weights)
    return model.eval()


def _our_name(name: str) -> str:
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    head, _, rest = name.partition(".")
    index, _, rest = rest.partition(".")
    if head == "ssd_layers":
        for theirs, ours in _LAYER_PREFIXES.items():
            if rest.startswith(theirs):
                return f"blocks.{index}.{ours}{rest.removeprefix(theirs)}"
    return name
