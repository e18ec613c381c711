"""benchmarks.gpu runs without a GPU, and says so where one is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import gpu

app = typer.Typer()
app.command()(gpu.main)


def test_every_figure_is_beside_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    done = CliRunner().invoke(
        app, ["--device=cpu", "--kernels=reference", "--small", "--no-http", f"--json={file}"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert found["machine"]["kernels"] == "reference"
    rows = {(row["what"], row["size"]): row for row in found["rows"]}
    assert list(rows) == [
        ("copy", 2**22), ("product, float32", 128), ("step", 1), ("step", 3), ("prefill", 120),
        ("top 10 of 500", 1), ("top 10 of 500", 2),
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["us"] > 0
        assert row["rate"] > 0
        if row["what"] not in ("copy", "product, float32"):
            assert row["share"] == pytest.approx(row["least_us"] / row["us"])
    # 37,648 bytes read and written, by the bandwidth that was measured.
    copied = rows["copy", 2**22]
    least_us = 2 * 3 * 37_648 / (copied["rate"] * 1e9) * 1e6
    assert rows["step", 3]["least_us"] == pytest.approx(least_us)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = CliRunner().invoke(app, ["--small"])
    assert done.exit_code == 1
    assert "no GPU is found; --device cpu --small shows that this runs" in done.output


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_kernels_on_a_gpu() -> None:
    bench = gpu.Bench(torch.device("cuda"), "triton", gpu.SMALL)
    with torch.inference_mode():
        rows = [*bench.steps(), *bench.wave_of_one(), *bench.prefill(), *bench.top_k()]
    assert [row.what for row in rows if not row.us > 0] == []
