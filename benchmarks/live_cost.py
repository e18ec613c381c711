"""What the live layer costs: the service with it beside the service without.

    python -m benchmarks.live_cost artefacts/amazon-beauty LOG --json runs/live-cost.json

Both run at once on the same code and artefact, each on a store of its own into which the log was
imported, and are loaded in turn in short rounds, so that the machine's speed drifts alike for both.
A ratio is with to without, the median over rounds; beside it the quartiles. `CPU` is that of the
service's process for one request. Requests are of the users with the most interactions, and are new
interactions with items of the log.
"""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from typer.testing import CliRunner

from benchmarks import http_load
from benchmarks.against import IN_FLIGHT, compared, full_load, in_turn, show
from benchmarks.http_load import closed_loop, open_loop
from benchmarks.running import Server, service, store
from cli.console import CommandError, errors_without_traceback, say
from cli.main import app
from training.interactions import read_log


def renamed(log: Path, users: int, target: Path) -> list[str]:
    """Writes the log with its most active users as user-0, user-1, ...; the items it has."""
    frame = read_log(log).frame
    count = Counter(frame["user_id"].to_list())
    names = {user: f"user-{n}" for n, (user, _) in enumerate(count.most_common(users))}
    with target.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("user_id", "item_id", "timestamp"))
        for user, item, time in frame.select("user_id", "item_id", "time_ms").iter_rows():
            rows.writerow((names.get(user, f"other-{user}"), item, time))
    return frame["item_id"].unique().sort().to_list()


def main(
    artefact: Annotated[Path, typer.Argument(help="Folder of a model with a mixture.")],
    log: Annotated[Path, typer.Argument(help="Interactions to import.")],
    users: Annotated[int, typer.Option(min=1, help="Users who ask.")] = 2000,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of each kind of request.")] = 60,
    seconds: Annotated[float, typer.Option(help="Length of a round.")] = 0.5,
    rate: Annotated[float, typer.Option(help="The constant rate, requests a second.")] = 500.0,
    rate_rounds: Annotated[int, typer.Option(min=2, help="Rounds at that rate.")] = 20,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure the service without and with the live layer, in turn."""
    with errors_without_traceback(), ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tim4rec-"))
        file = Path(folder, "log.csv")
        items = renamed(log, users, file)
        sides = []
        for live in ("false", "true"):
            url = stack.enter_context(store())
            done = CliRunner().invoke(app, ["import-log", str(file), "--redis", url])
            if done.exit_code:
                raise CommandError(done.output.strip())
            sides.append(stack.enter_context(service(artefact, url, TIM4REC_LIVE=live)))
        without, having = sides
        for side in sides:
            closed_loop(side.port, http_load.reads(users), IN_FLIGHT, 8 * seconds)

        def reads(turn: int) -> Iterator[bytes]:
            return http_load.reads(users, turn)

        def writes(turn: int) -> Iterator[bytes]:
            return http_load.writes(users, items, turn)

        found = []
        for name, requests in (("GET", reads), ("POST", writes)):
            found += full_load(without, having, name, requests, rounds, seconds)
            say(f"{name}: {found[-2].ratio:.3f} of the requests")

        def p99(one: Server, turn: int) -> float:
            return open_loop(one.port, http_load.mixed(users, items, turn), rate, 2).ms(99)

        found.append(compared(f"p99 at {rate:g}/s, ms", in_turn(without, having, rate_rounds, p99)))
    show(found, ("without", "with"), json_file)


if __name__ == "__main__":
    typer.run(main)
