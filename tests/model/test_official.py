"""Our model against outputs of the official implementation (float64, random weights)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.official import OfficialWeightsError, load_official

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))


def read(path: Path):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    config = json.loads(str(arrays.pop("config")))
    weights = {k[2:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("w/")}
    return config, weights, {k: torch.from_numpy(v) for k, v in arrays.items() if "/" not in k}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_reproduces_the_official_output(path: Path) -> None:
    config, weights, data = read(path)
    model = load_official(config, weights)
    with torch.no_grad():
        output = model.window_output(data["items"], data["lengths"], data["timestamps"])
        scores = model.scores(output)
    torch.testing.assert_close(output, data["output"], rtol=0, atol=1e-9)
    torch.testing.assert_close(scores[:, 1:], data["scores"][:, 1:], rtol=0, atol=1e-9)
    assert torch.isneginf(scores[:, 0]).all()


def test_there_are_golden_files() -> None:
    assert len(GOLDEN) == 6


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_the_window_state_gives_the_same_output(path: Path) -> None:
    config, weights, data = read(path)
    model = load_official(config, weights)
    items, times = data["items"], data["timestamps"] * 1000
    expected = data["output"]
    with torch.no_grad():
        state = model.new_state(len(items))
        for i in range(items.shape[1]):
            stepped = model.step(items[:, i], times[:, i], state)
            going = (i < data["lengths"]).nonzero()[:, 0]
            state.write(going, stepped.rows(going))
        prefilled = model.prefill(items, times, data["lengths"], model.new_state(len(items)))
    for result in (state, prefilled):
        output = model.query(result)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)


def test_wrong_checkpoints_name_the_tensor() -> None:
    config, weights, _ = read(GOLDEN[0])
    with pytest.raises(OfficialWeightsError, match=r"in_proj\.weight is .* asks for"):
        load_official({**config, "d_state": 4}, weights)
    with pytest.raises(OfficialWeightsError, match=r"lacks .*ffn"):
        load_official(config, {k: v for k, v in weights.items() if "ffn" not in k})
    with pytest.raises(OfficialWeightsError, match="extra has no place"):
        load_official(config, {**weights, "extra": torch.zeros(1)})
