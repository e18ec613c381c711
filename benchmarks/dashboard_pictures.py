"""Draws the Grafana dashboard of deploy/ from a real run, without Grafana.

    python -m benchmarks.dashboard_pictures ARTEFACT --minutes 5 --out docs/pictures

Two workers, a Valkey that writes every event to its disk, a Prometheus with deploy/prometheus as
it is, and a load that rises and falls, with some bursts while the store holds still. Then every
panel's own query is asked for that time, and its answer drawn where the panel stands. Needs the
extra `docs` and Debian's prometheus. The pool, the queue and the waves are made small, so that
one can see them fill with so few users.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import redis.asyncio
from numpy.typing import NDArray

from benchmarks.dashboard import Dashboard
from benchmarks.history_cost import free_port, wait_until_ready
from benchmarks.load import Load, client_of
from benchmarks.prometheus import Prometheus, scrape_interval_s
from model.artefact import load_artefact
from service.store.valkey_binary import valkey_binary

PICTURES = {
    "requests": ("Overview", "Requests"),
    "states": ("Waves and the pool", "Store", "States"),
    "processes": ("Interactions and recommendations", "Exactness", "Processes"),
}
"""Rows of the dashboard in each picture."""

SMALL = {
    "pool_capacity": 400,
    "max_batch": 32,
    "max_queue": 32,
    "snapshot_every": 8,
    "exactness_every_s": 2,
}
USERS = 800
HISTORY = 20
"""Interactions of each user at the start."""

BURSTS_AT = 0.7
"""When the bursts begin, as a share of the run."""

COLUMN_IN, ROW_IN = 0.62, 0.31
PAPER, PANEL, INK, FAINT = "#111217", "#181b1f", "#ccccdc", "#3a3d44"
COLORS = {
    "green": "#73bf69",
    "dark-green": "#37872d",
    "yellow": "#fade2a",
    "orange": "#ff9830",
    "red": "#f2495c",
    "dark-red": "#c4162a",
    "blue": "#5794f2",
    "purple": "#b877d9",
    "text": INK,
}
PALETTE = (
    "#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#8ab8ff", "#b877d9", "#c8f2c2",
    "#7d64b0", "#a16a1e", "#1f60c4", "#ffb3c1",
)  # fmt: skip
UNITS = {"reqps": " req/s", "ops": " ops/s", "cpm": " c/m"}

Floats = NDArray[np.float64]
Box = tuple[float, float, float, float]
"""Left, bottom, width, height."""


# -- the run -----------------------------------------------------------------------------


@contextmanager
def a_store() -> Iterator[str]:
    """A Valkey that has written what it has answered; its URL."""
    with tempfile.TemporaryDirectory(prefix="tim4rec-") as folder:
        command = [str(valkey_binary()), "--port", "0", "--unixsocket", f"{folder}/s"]
        command += ["--dir", folder, "--appendonly", "yes", "--appendfsync", "always"]
        command += ["--maxmemory", "256mb", "--maxmemory-policy", "noeviction"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not Path(folder, "s").exists() and process.poll() is None:
                time.sleep(0.05)
            yield f"unix://{folder}/s"
        finally:
            process.terminate()
            process.wait()


@contextmanager
def a_service(artefact: Path, store: str, port: int) -> Iterator[str]:
    """Two workers on the port; their URL."""
    settings = {f"TIM4REC_{name.upper()}": str(value) for name, value in SMALL.items()}
    command = [sys.executable, "-m", "cli.main", "serve", str(artefact), "--workers", "2"]
    command += ["--port", str(port), "--redis", store]
    process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url) as client:
            wait_until_ready(client, process)
        yield url
    finally:
        process.terminate()
        process.wait()


async def fill(url: str, items: list[str]) -> None:
    async with client_of(url) as client:
        await Load(client, items, users=USERS).fill(HISTORY)


async def put_under_load(url: str, store: str, items: list[str], seconds: float) -> Counter[int]:
    """A load that rises and falls three times."""

    def rate(at: float) -> float:
        return 45 + 30 * math.sin(6 * math.pi * at / seconds)

    async with (
        client_of(url) as client,
        redis.asyncio.Redis.from_url(store) as stopping,
        asyncio.TaskGroup() as tasks,
    ):
        load = Load(client, items, users=USERS)
        tasks.create_task(load.run(seconds, rate))
        await asyncio.sleep(BURSTS_AT * seconds)
        for _ in range(3):  # over several scrapes: a rate has to see it grow
            await stopping.client_pause(500)
            await load.burst(300)
            await asyncio.sleep(4)
    return load.statuses


# -- the drawing -------------------------------------------------------------------------


def shown(value: float, unit: str) -> str:
    """A value as Grafana writes it."""
    if not math.isfinite(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.{3 if abs(value) < 10 else 6}g} %"
    if unit == "sci":
        return "0" if value == 0 else f"{value:.0e}"
    if unit == "s":
        for factor, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= factor:
                return f"{value / factor:.3g} {name}"
        return "0"
    if unit in ("bytes", "Bps"):
        for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB"), (0, "B")):
            if abs(value) >= 1024**power or not power:
                return f"{value / 1024**power:.3g} {name}{'/s' if unit == 'Bps' else ''}"
    return f"{value:.3g}{UNITS.get(unit, '')}"


def label(legend: str, metric: dict[str, str]) -> str:
    if legend == "__auto":
        return ", ".join(metric.values())
    return re.sub(r"{{(\w+)}}", lambda found: metric.get(found[1], ""), legend)


class Drawing:
    """Draws panels of one run, from `start` to `end` (epoch seconds)."""

    def __init__(self, prometheus: Prometheus, start: float, end: float) -> None:
        self.dashboard = Dashboard.read()
        self.prometheus, self.start, self.end = prometheus, start, end
        self.every_s = scrape_interval_s()
        self.times = np.arange(start, end, self.every_s)

    def answers(self, panel: dict[str, Any]) -> list[tuple[str, Floats]]:
        """Each series of a panel: its legend, and a value (or NaN) at each of `times`."""
        found = []
        for target in panel["targets"]:
            query = self.dashboard.filled(target["expr"], self.every_s)
            for series in self.prometheus.query_range(query, self.start, self.end, self.every_s):
                values = np.full(len(self.times), np.nan)
                for at, value in series["values"]:
                    place = round((at - self.start) / self.every_s)
                    if place < len(values):
                        values[place] = float(value)
                found.append((label(target["legendFormat"], series["metric"]), values))
        return found

    def save(self, file: Path, rows: tuple[str, ...]) -> None:
        """One picture of some rows of the dashboard."""
        plt: Any = importlib.import_module("matplotlib.pyplot")  # only of the extra `docs`
        panels: list[dict[str, Any]] = []
        keep = False
        for panel in self.dashboard.json["panels"]:
            if panel["type"] == "row":
                keep = panel["title"] in rows
            if keep:
                panels.append(panel)
        top = min(panel["gridPos"]["y"] for panel in panels)
        bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + 1
        width, height = 24 * COLUMN_IN, (bottom - top) * ROW_IN
        figure = plt.figure(figsize=(width, height), facecolor=PAPER)
        plt.rcParams |= {"font.size": 7.5, "text.color": INK, "axes.labelcolor": INK}
        for panel in panels:
            grid = panel["gridPos"]
            left, low = grid["x"] * COLUMN_IN, height - (grid["y"] + grid["h"] - top) * ROW_IN
            wide, high = grid["w"] * COLUMN_IN, grid["h"] * ROW_IN
            title = self.dashboard.filled(panel["title"], self.every_s)
            if panel["type"] == "row":
                at = ((left + 0.05) / width, (low + 0.1) / height)
                figure.text(*at, f"▾ {title}", size=10, weight="bold")
                continue
            frame = (left + 0.03, low + 0.03, wide - 0.06, high - 0.06)
            figure.add_axes(_share(frame, width, height), facecolor=PANEL, xticks=[], yticks=[])
            at = ((left + 0.12) / width, (low + high - 0.23) / height)
            figure.text(*at, title, size=8.5)
            two_axes = "custom.axisPlacement" in str(panel["fieldConfig"]["overrides"])
            inside = (left + 0.75, low + 0.68, wide - (1.4 if two_axes else 0.95), high - 1.04)
            if panel["type"] in ("stat", "table"):
                inside = (left + 0.1, low + 0.1, wide - 0.2, high - 0.45)
            axes = figure.add_axes(_share(inside, width, height), facecolor="none")
            getattr(self, f"_{panel['type']}")(axes, panel)
        seconds = self.end - self.start
        figure.text(
            0.05 / width,
            0.1 / height,
            f"Drawn with matplotlib from the dashboard's own queries, by a real Prometheus over "
            f"{seconds / 60:.0f} minutes of load (python -m benchmarks.dashboard_pictures); "
            "the peaks near the end are bursts while the store was held still. Grafana's drawing "
            "differs in its details.",
            color="#8e8e99",
        )
        figure.savefig(file, dpi=100)
        plt.close(figure)

    def _stat(self, axes: Any, panel: dict[str, Any]) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        found = self.answers(panel)
        axes.axis("off")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        for number, (name, values) in enumerate(found):
            there = values[np.isfinite(values)]
            value = float(there[-1]) if len(there) else math.nan
            color = INK
            for step in defaults["thresholds"]["steps"]:
                if step["value"] is None or value >= step["value"]:
                    color = COLORS[step["color"]]
            place = (number + 0.5) / len(found)
            text = shown(value, defaults["unit"])
            axes.text(place, 0.52, text, size=17, color=color, ha="center", va="center")
            if len(found) > 1:
                axes.text(place, 0.1, name, ha="center")
            elif panel["options"]["graphMode"] == "area" and len(there) > 1:
                height = 0.25 * there / max(there.max(), 1e-12)
                x = np.linspace(0, 1, len(there))
                axes.fill_between(x, 0, np.maximum(height, 0), color=color, alpha=0.25, lw=0)

    def _timeseries(self, axes: Any, panel: dict[str, Any]) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        stacked = defaults["custom"]["stacking"]["mode"] == "normal"
        below = np.zeros(len(self.times))
        minutes = (self.times - self.start) / 60
        right, right_unit = None, ""
        for number, (name, values) in enumerate(sorted(self.answers(panel), key=_first)):
            own = self._overrides(panel, name)
            color = _color(own.get("color"), number)
            dashed = own.get("custom.lineStyle", {}).get("fill") == "dash"
            on = axes
            if own.get("custom.axisPlacement") == "right":
                on = right = axes.twinx()
                right_unit = own["unit"]
            if stacked and not dashed:
                above = below + np.nan_to_num(values)
                on.fill_between(minutes, below, above, color=color, alpha=0.75, lw=0, label=name)
                below = above
            else:
                style = "--" if dashed else "-"
                on.plot(minutes, values, style, color=color, lw=1.3, label=name)
        for step in defaults.get("thresholds", {}).get("steps", ()):
            if step["value"] is not None:
                axes.axhline(step["value"], color=COLORS[step["color"]], ls="--", lw=1)
        scale = defaults["custom"].get("scaleDistribution")
        if scale:
            axes.set_yscale("symlog", linthresh=scale["linearThreshold"])
        if "max" in defaults:
            axes.set_ylim(0, 1.05 * defaults["max"])
        else:
            axes.set_ylim(0, max(1.1 * axes.get_ylim()[1], 1e-9))
        self._axis(axes, defaults["unit"])
        if right is not None:
            right.set_ylim(0, 1.1 * right.get_ylim()[1])
            self._axis(right, right_unit)
            right.grid(visible=False)
        handles, names = axes.get_legend_handles_labels()
        if right is not None:
            more = right.get_legend_handles_labels()
            handles, names = handles + more[0], names + more[1]
        longest_in = 0.28 + 0.048 * max(map(len, names))
        columns = max(1, int(panel["gridPos"]["w"] * COLUMN_IN / longest_in))
        axes.legend(
            handles[:12], names[:12], loc="upper left", bbox_to_anchor=(-0.1, -0.13), ncols=columns,
            frameon=False, handlelength=1, columnspacing=1, labelspacing=0.2, fontsize=6.5,
        )  # fmt: skip

    def _heatmap(self, axes: Any, panel: dict[str, Any]) -> None:
        found = sorted((float(name), values) for name, values in self.answers(panel))
        counts = np.diff([np.zeros(len(self.times)), *(np.nan_to_num(v) for _, v in found)], axis=0)
        minutes = (self.times - self.start) / 60
        shades = np.where(counts > 0, np.maximum(counts, 0) ** 0.5, np.nan)
        axes.pcolormesh(minutes, np.arange(len(found)), shades, cmap="inferno", shading="nearest")
        self._axis(axes, "s")
        edges = [shown(edge, "s") if math.isfinite(edge) else "more" for edge, _ in found]
        axes.set_yticks(range(len(found)), [f"≤ {e}" if e != "more" else e for e in edges])
        axes.grid(visible=False)

    def _table(self, axes: Any, panel: dict[str, Any]) -> None:
        (target,) = panel["targets"]
        (organized,) = (change["options"] for change in panel["transformations"])
        found = self.prometheus.query(
            self.dashboard.filled(target["expr"], self.every_s), self.times[-1]
        )
        columns = sorted(organized["indexByName"], key=organized["indexByName"].__getitem__)
        axes.axis("off")
        names = [organized["renameByName"].get(column, column) for column in columns]
        for number, series in enumerate(found):
            for place, (name, column) in enumerate(zip(names, columns, strict=True)):
                high = 0.95 - 0.12 * (place + number * (len(names) + 1))
                axes.text(0.0, high, name, color="#8e8e99", va="top", transform=axes.transAxes)
                text = series["metric"][column]
                axes.text(0.35, high, text, va="top", transform=axes.transAxes)

    def _axis(self, axes: Any, unit: str) -> None:
        axes.yaxis.set_major_formatter(lambda value, _: shown(value, unit))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} min")
        if unit in ("bytes", "Bps"):
            step = 2 ** math.ceil(math.log2(max(axes.get_ylim()[1], 8) / 8))
            axes.set_yticks(np.arange(0, axes.get_ylim()[1], step))
        axes.tick_params(colors=INK, length=0, labelsize=6.5)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlim(0, (self.end - self.start) / 60)
        axes.grid(color=FAINT, lw=0.5)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set_visible(False)

    def _overrides(self, panel: dict[str, Any], name: str) -> dict[str, Any]:
        own: dict[str, Any] = {}
        for override in panel["fieldConfig"]["overrides"]:
            wanted = override["matcher"]["options"]
            matches = (
                re.search(wanted.strip("/"), name)
                if override["matcher"]["id"] == "byRegexp"
                else wanted == name
            )
            if matches:
                own |= {given["id"]: given["value"] for given in override["properties"]}
        return own


def _first(answer: tuple[str, Floats]) -> str:
    return answer[0]


def _share(box: Box, width: float, height: float) -> Box:
    return (box[0] / width, box[1] / height, box[2] / width, box[3] / height)


def _color(given: dict[str, str] | None, number: int) -> str:
    if given is None:
        return PALETTE[number % len(PALETTE)]
    named = COLORS.get(given["fixedColor"], given["fixedColor"])
    if given["mode"] == "shades":
        red, green, blue = (int(named[i : i + 2], 16) for i in (1, 3, 5))
        light = 1 - 0.13 * (number % 5)
        return f"#{int(red * light):02x}{int(green * light):02x}{int(blue * light):02x}"
    return named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("error: matplotlib is missing: pip install 'tim4rec[docs]'")
    items = load_artefact(args.artefact).items.ids
    port = free_port()
    with ExitStack() as running:
        try:
            prometheus = running.enter_context(Prometheus(f"127.0.0.1:{port}"))
        except FileNotFoundError as error:
            raise SystemExit(f"error: {error}") from None
        store = running.enter_context(a_store())
        url = running.enter_context(a_service(args.artefact, store, port))
        asyncio.run(fill(url, items))
        time.sleep(4 * scrape_interval_s())  # until no rate sees it any more
        start = time.time()
        statuses = asyncio.run(put_under_load(url, store, items, 60 * args.minutes))
        drawing = Drawing(prometheus, start, time.time())
        args.out.mkdir(parents=True, exist_ok=True)
        for name, rows in PICTURES.items():
            drawing.save(args.out / f"dashboard-{name}.png", rows)
    answers = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
    print(f"answers by status: {answers}; pictures in {args.out}")


if __name__ == "__main__":
    main()
