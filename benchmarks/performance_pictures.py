"""Draws what `benchmarks.service_load` and `benchmarks.history_cost` wrote with --json.

    python -m benchmarks.performance_pictures --load FILE --history FILE --out docs/pictures

latency-against-rate.svg: percentiles at constant rates. cost-against-history.svg: one more
interaction, by the service and beside it the recomputed history. Needs the extra `docs`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import CommandError, errors_without_traceback, say

INK, FAINT = "#24292f", "#d0d7de"
COLORS = {"p50_ms": "#57606a", "p90_ms": "#0969da", "p99_ms": "#cf222e"}
LINES = {
    "get_ms": ("GET /recommend after it", "#0969da"),
    "post_ms": ("POST /interactions, on disk", "#1a7f37"),
    "step_ms": ("the step alone", "#57606a"),
    "window_ms": ("the whole history recomputed", "#cf222e"),
}


def latency(rows: list[dict[str, Any]], plot: Any) -> None:
    """Latency over rate, a line a percentile, for the fsync policy with most rates."""
    policies = [row["fsync"] for row in rows]
    policy = max(dict.fromkeys(policies), key=policies.count)
    shown = sorted((row for row in rows if row["fsync"] == policy), key=lambda row: row["asked"])
    rates = [row["asked"] for row in shown]
    for name, color in COLORS.items():
        values = [row[name] for row in shown]
        plot.plot(rates, values, color=color, marker="o")
        plot.annotate(f"  {name.removesuffix('_ms')}", (rates[-1], values[-1]), color=color)
    plot.set(
        xlabel="requests a second, four GETs to a POST",
        ylabel="ms from when the request should have been sent",
        yscale="log",
        title=f"One process, fsync {policy}",
    )
    plot.margins(x=0.1)


def cost(rows: list[dict[str, Any]], plot: Any) -> None:
    """Cost of one more interaction over the length of the history before it."""
    lengths = [row["history"] for row in rows]
    for name, (title, color) in LINES.items():
        values = [row[name] for row in rows]
        plot.plot(lengths, values, color=color, marker="o")
        plot.annotate(f"  {title}", (lengths[-1], values[-1]), color=color, va="center")
    plot.set(
        xlabel="interactions before it", ylabel="ms", xscale="log", yscale="log",
        title="One more interaction",
    )  # fmt: skip
    plot.set_xlim(lengths[0] / 1.6, lengths[-1] * 40)


def pyplot() -> Any:
    """Of matplotlib, for files; the same figures give the same file. Raises CommandError without
    it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError("matplotlib is not installed: pip install -e '.[docs]'")
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("agg")
    matplotlib.rcParams |= {"svg.hashsalt": "tim4rec", "svg.fonttype": "none"}
    return importlib.import_module("matplotlib.pyplot")


def finish(plot: Any) -> None:
    """A faint grid, and no frame."""
    plot.grid(color=FAINT, linewidth=0.6)
    plot.spines[["top", "right"]].set_visible(False)
    plot.tick_params(colors=INK)


def draw(found: dict[str, list[dict[str, Any]]], folder: Path) -> list[Path]:
    """Raises CommandError without matplotlib."""
    pictures = {"latency-against-rate": latency, "cost-against-history": cost}
    written = []
    for name, rows in found.items():
        figure, plot = pyplot().subplots(figsize=(7.5, 4.2), layout="constrained")
        pictures[name](rows, plot)
        finish(plot)
        written.append(folder / f"{name}.svg")
        figure.savefig(written[-1], metadata={"Date": None}, facecolor="white")
        pyplot().close(figure)
    return written


def main(
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    load: Annotated[Path | None, typer.Option(help="Of benchmarks.service_load.")] = None,
    history: Annotated[Path | None, typer.Option(help="Of benchmarks.history_cost.")] = None,
) -> None:
    """Draw them."""
    with errors_without_traceback():
        sources = {
            "latency-against-rate": (load, "at_rates"),
            "cost-against-history": (history, "rows"),
        }
        found = {}
        for name, (file, key) in sources.items():
            if file is not None:
                try:
                    found[name] = json.loads(file.read_text())[key]
                except (OSError, ValueError, KeyError) as error:
                    raise CommandError(f"{file}: no figures for {name}: {error}") from error
        if not found:
            raise CommandError("give --load FILE, --history FILE, or both")
        out.mkdir(parents=True, exist_ok=True)
        for path in draw(found, out):
            say(f"written to {path}")


if __name__ == "__main__":
    typer.run(main)
