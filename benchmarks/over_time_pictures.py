"""Draws what `benchmarks.over_time` wrote with --json.

    python -m benchmarks.over_time_pictures FILE [FILE ...] --out docs/pictures/forward-in-time.svg

NDCG@10 of all events by period, a panel a report: what is served, its model alone, the model as it
was once trained, and counting. Models are asked right after the user's last interaction, or with an
unknown time where they take none. Needs the extra `docs`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.performance_pictures import INK, finish, pyplot
from cli.console import CommandError, errors_without_traceback, say
from training.forward.models import AFTER, UNKNOWN

METRIC, SLICE = "NDCG@10", "all events"
COLUMNS = 2
LINES = {
    "served": ("served", "#0969da", 2.4),
    "live-off": ("its model alone", "#8250df", 1.4),
    "frozen": ("trained once", "#cf222e", 1.4),
    "item-knn": ("item-kNN", "#1a7f37", 1.4),
    "transitions": ("transitions", "#9a6700", 1.4),
    "popularity": ("popularity", "#57606a", 1.4),
}


@dataclass(frozen=True, slots=True)
class Panel:
    """periods: when they begin; values: of each period, None where it has no event, by name of
    `LINES`."""

    title: str
    periods: list[str]
    values: dict[str, list[float | None]]

    @classmethod
    def read(cls, report: Path) -> Panel:
        """Raises CommandError where it is no report with such figures."""
        try:
            found = json.loads(report.read_text())
            values = {
                row["policy"]: [period and period[METRIC] for period in row["periods"]]
                for row in found["figures"]
                if row["slice"] == SLICE
            }
            periods = _labels(found["periods"])
            title = f"{found['dataset']}, {found['events']:,} events"
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CommandError(f"{report}: no report of benchmarks.over_time: {error}") from error
        return cls(title, periods, {name: own for name in LINES if (own := _asked(values, name))})


def _labels(borders: list[str]) -> list[str]:
    """The days, with times where there are several a day."""
    days = [border.partition("T")[0] for border in borders]
    if len(set(days)) == len(days):
        return days
    return [border.partition("-")[2].replace("T", " ") for border in borders]


def _asked(values: dict[str, list[float | None]], name: str) -> list[float | None] | None:
    policies = (name, f"{name}, {AFTER}", f"{name}, {UNKNOWN}")
    return next((values[policy] for policy in policies if policy in values), None)


def draw(panels: list[Panel], file: Path) -> None:
    """Raises CommandError without matplotlib."""
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    size = (4.6 * columns, 3.4 * lines + 0.6)
    figure, plots = pyplot().subplots(
        lines, columns, figsize=size, layout="constrained", squeeze=False
    )
    for spare in plots.flat[len(panels) :]:
        spare.remove()
    shown = {}
    for panel, plot in zip(panels, plots.flat, strict=False):
        for name, values in panel.values.items():
            title, color, width = LINES[name]
            (shown[title],) = plot.plot(
                panel.periods, [float("nan") if v is None else v for v in values],
                color=color, linewidth=width, marker="o", markersize=3,
            )  # fmt: skip
        plot.set_title(panel.title, color=INK, fontsize=10)
        plot.set(ylim=(0, None), ylabel=METRIC)
        finish(plot)
        plot.tick_params(axis="x", rotation=45)
    figure.supxlabel("periods of equally many events, by when they begin")
    figure.legend(
        list(shown.values()), list(shown), loc="outside upper center", ncols=3, frameon=False
    )
    figure.savefig(file, metadata={"Date": None}, facecolor="white")
    pyplot().close(figure)


def main(
    reports: Annotated[list[Path], typer.Argument(help="Of benchmarks.over_time, a panel each.")],
    out: Annotated[Path, typer.Option(help="File of the picture.")],
) -> None:
    """Draw them."""
    with errors_without_traceback():
        panels = [Panel.read(report) for report in reports]
        out.parent.mkdir(parents=True, exist_ok=True)
        draw(panels, out)
        say(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
