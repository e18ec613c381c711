"""What the service carries beside itself as it was at another commit.

    python -m benchmarks.against HEAD~10 artefacts/amazon-beauty --json runs/against.json

Both run at once, each on a store of its own with the same histories, and are loaded in turn in
short rounds, so that the machine's speed drifts alike for both. A ratio is now to then, the median
over rounds; beside it the quartiles. `CPU` is that of the service's process for one request. Then a
constant rate, four GETs to one POST.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import typer
from rich.table import Table

from benchmarks import http_load
from benchmarks.http_load import closed_loop, open_loop
from benchmarks.running import ROOT, Server, fill, service, store
from cli.console import CommandError, errors_without_traceback, out, say
from model.artefact import load_artefact

T = TypeVar("T")

LENGTHS = (4, 14)
IN_FLIGHT = 64


@dataclass(frozen=True)
class Comparison:
    """Medians over rounds of one figure; the ratio is that of now to then, with its quartiles."""

    figure: str
    then: float
    now: float
    ratio: float
    lower: float
    upper: float


def compared(figure: str, pairs: list[tuple[float, float]]) -> Comparison:
    """Of the figure's (then, now) of each round."""
    lower, ratio, upper = np.percentile([now / then for then, now in pairs], [25, 50, 75])
    then, now = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Comparison(figure, then, now, float(ratio), float(lower), float(upper))


def in_turn(
    then: Server, now: Server, rounds: int, measure: Callable[[Server, int], T]
) -> list[tuple[T, T]]:
    """What is measured of each, round by round; who is first alternates."""
    found = []
    for turn in range(rounds):
        sides = {}
        for one in (then, now) if turn % 2 else (now, then):
            sides[one.port] = measure(one, turn)
        found.append((sides[then.port], sides[now.port]))
    return found


def full_load(
    then: Server,
    now: Server,
    name: str,
    requests: Callable[[int], Iterator[bytes]],
    rounds: int,
    seconds: float,
) -> list[Comparison]:
    """Requests a second with 64 in flight, and the CPU time of one."""

    def measure(one: Server, turn: int) -> tuple[float, float]:
        before = one.cpu_s()
        outcome = closed_loop(one.port, requests(turn), IN_FLIGHT, seconds)
        if outcome.failures:
            raise CommandError(f"answers with other statuses than 200: {dict(outcome.failures)}")
        return outcome.rate, (one.cpu_s() - before) / len(outcome.latencies) * 1e6

    found = in_turn(then, now, rounds, measure)
    return [
        compared(f"{name}, requests/s", [(a[0], b[0]) for a, b in found]),
        compared(f"{name}, CPU µs", [(a[1], b[1]) for a, b in found]),
    ]


def show(found: list[Comparison], sides: tuple[str, str], json_file: Path | None) -> None:
    """Prints a table of what was compared, and writes it."""
    table = Table("", *sides, "ratio", "quartiles")
    for row in found:
        quartiles = f"{row.lower:.3f} to {row.upper:.3f}"
        table.add_row(
            row.figure, f"{row.then:,.1f}", f"{row.now:,.1f}", f"{row.ratio:.3f}", quartiles
        )
    out.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")
        say(f"written to {json_file}")


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The repository's files as they were at a commit.

    Raises:
        CommandError: git knows no such commit.
    """
    with tempfile.TemporaryDirectory(prefix="tim4rec-") as folder:
        place = Path(folder, "then")
        git = ["git", "-C", str(ROOT), "worktree"]
        done = subprocess.run(
            [*git, "add", "--detach", str(place), commit], capture_output=True, text=True
        )
        if done.returncode:
            raise CommandError(f"{commit}: {done.stderr.strip().splitlines()[-1]}")
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def main(
    commit: Annotated[str, typer.Argument(help="What to compare with, as git names it.")],
    artefact: Annotated[Path, typer.Argument(help="Folder of the model to serve.")],
    users: Annotated[int, typer.Option(min=1, help="Users with a history.")] = 2000,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of each kind of request.")] = 90,
    seconds: Annotated[float, typer.Option(help="Length of a round.")] = 0.5,
    rate: Annotated[float, typer.Option(help="The constant rate, requests a second.")] = 500.0,
    rate_rounds: Annotated[int, typer.Option(min=2, help="Rounds at that rate.")] = 30,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure the service now and as it was, in turn."""
    with errors_without_traceback(), ExitStack() as stack:
        items = load_artefact(artefact).items.ids
        source = stack.enter_context(checkout(commit))
        sides = []
        for code in (source, ROOT):
            url = stack.enter_context(store())
            fill(url, items, users, LENGTHS)
            sides.append(stack.enter_context(service(artefact, url, source=code)))
        then, now = sides
        for side in sides:
            closed_loop(side.port, http_load.reads(users), IN_FLIGHT, 8 * seconds)
        kinds = {
            "GET": lambda turn: http_load.reads(users, turn),
            "POST": lambda turn: http_load.writes(users, items, turn),
        }
        found = []
        for name, requests in kinds.items():
            found += full_load(then, now, name, requests, rounds, seconds)
            say(f"{name}: {found[-2].ratio:.3f} of the requests")

        def p99(one: Server, turn: int) -> float:
            return open_loop(one.port, http_load.mixed(users, items, turn), rate, 2).ms(99)

        found.append(compared(f"p99 at {rate:g}/s, ms", in_turn(then, now, rate_rounds, p99)))
    show(found, ("then", "now"), json_file)


if __name__ == "__main__":
    typer.run(main)
