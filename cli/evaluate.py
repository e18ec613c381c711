"""`tim4rec evaluate`: a trained model on a log, in modes that must agree."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cli.artefacts import ArtefactPlace, fetched
from cli.console import CommandError, err, out, say
from cli.device import choose_device
from cli.figures import figures
from cli.live import rank_through_service, replayable, require_model
from cli.service_client import service_client
from cli.steps import Kinds, chosen_kinds, read_steps, say_overlap, say_what_was_read
from cli.table_options import AnyTime, Columns, Encoding, TimeFormat
from model.artefact import METRICS, Artefact, load_artefact
from training.comparison import Comparison
from training.dataset import Dataset, Int64s, Protocol, Targets, build_dataset
from training.evaluation import (
    TOLERANCE,
    Agreement,
    OfflineMode,
    Ranking,
    ResultRow,
    agreement,
    evaluate_offline,
    rank_targets,
    rows_of,
)
from training.metrics import CUTOFFS
from training.table_format import TableFormat


class Mode(StrEnum):  # typer takes no list of a Literal
    PARALLEL = "parallel"
    RECURRENT = "recurrent"
    SERVICE = "service"

    @property
    def offline(self) -> OfflineMode:
        return "recurrent" if self is Mode.RECURRENT else "parallel"


LISTED = 20


def evaluate(
    artefact: ArtefactPlace,
    log: Annotated[Path, typer.Argument(help="The interaction log to split and test on.")],
    mode: Annotated[
        list[Mode] | None,
        typer.Option(
            help="parallel: one pass over each history. recurrent: one step an interaction. "
            "service: replayed through a running service (--url). May be given several times.",
            show_default="parallel and recurrent",
        ),
    ] = None,
    url: Annotated[
        str, typer.Option(help="(service) Where the service listens.")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None,
        typer.Option(envvar="TIM4REC_API_KEY", help="(service) Sent as X-API-Key."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="(service) Ranks are known up to this.")] = 100,
    users: Annotated[
        int, typer.Option(min=0, help="Test a fixed sample of this many users; 0: all.")
    ] = 0,
    core: Annotated[
        int | None, typer.Option(min=1, help="Of the log.", show_default="as in training")
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that can't be read.")
    ] = False,
    kinds: Kinds = None,
    columns: Columns = None,
    encoding: Encoding = None,
    time_format: TimeFormat = None,
    any_time: AnyTime = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show all figures of each mode in a table.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results there too.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Measure a model on a log, beside recent popularity and item-kNN of the same targets.

    Items are ranked among the whole catalogue. HR, NDCG and MRR at 10, 20 and 50, by history and
    request time, are shown with --verbose and written with --json.

    With several modes, every user's rank must be the same in all of them, except where scores
    differ by less than 1e-4; how many those are is printed, and any other difference is listed
    and ends the command with exit code 1. In service mode, histories are posted under user ids
    of their own and deleted afterwards. Where the request time is known, it is the target's own.
    """
    form = TableFormat.parse(columns, encoding, time_format, any_time)
    modes = list(dict.fromkeys(mode or [Mode.PARALLEL, Mode.RECURRENT]))
    artefact_folder = fetched(artefact)
    loaded = load_artefact(artefact_folder, choose_device(device))
    try:
        protocol = Protocol.from_dict(loaded.metrics.get("protocol", {}))
    except (TypeError, ValueError) as error:
        raise CommandError(f"{artefact}/{METRICS}: protocol: {error}") from None
    rules = chosen_kinds(kinds, {artefact: loaded.kinds})
    read = read_steps(log, rules, skip_bad_rows=skip_bad_rows, form=form)
    say_what_was_read(log, read)
    say_overlap(log, read, loaded.scored_items.ids, artefact_folder)
    if "refit" in loaded.metrics or loaded.metrics.get("step") == "warm":
        say(
            f"{artefact} was trained on every row of its log: there, these figures say what it "
            "has learned, not what it will be worth"
        )
    if protocol.split == "forward":  # which has no test
        protocol = replace(protocol, split="leave-one-out")
    if core is not None:
        protocol = replace(protocol, core_users=core, core_items=core)
    dataset = build_dataset(read, protocol, loaded.scored_items.ids, loaded.model.config.n_items)
    targets = dataset.test.sample(users) if users else dataset.test
    unseen = int((targets.items == 0).sum())
    say(
        f"{len(targets)} users tested of {len(dataset.histories)}, {dataset.n_items} items"
        + (f"; {unseen} targets are unknown to the model: misses" if unseen else "")
    )

    rows: list[ResultRow] = []
    rankings: dict[Mode, Mapping[bool, Ranking]] = {}
    for current in modes:
        found: Mapping[bool, Ranking]
        if current is Mode.SERVICE:
            found = _through_service(loaded, dataset, targets, url, api_key, top)
            (asked, ranking) = next(iter(found.items()))
            shown = rows_of(ranking, current.value, "whole", asked)
        else:
            lasts = (50, 200) if current is Mode.PARALLEL else ()
            with _progress(current.value, len(targets) * (1 + len(lasts))) as advance:
                shown, found = evaluate_offline(
                    loaded.model, dataset.histories, targets,
                    mode=current.offline, lasts=lasts, progress=advance,
                )  # fmt: skip
        rankings[current] = found
        if verbose:
            # A narrower one would cut the figures off where the output is no terminal.
            Console(width=max(out.width, 112)).print(results_table(current.value, shown))
        rows += shown
    first = rankings[modes[0]]
    beside = Comparison.of(dataset, *_asked_least(first))
    for line in (*beside.lines("targets"), *figures(rows, modes[0].value)):
        say(line, out)
    compared = _compare(loaded, dataset, rankings)
    if json_file is not None:
        report = {
            "artefact": loaded.identity,
            "log": log.name,
            "protocol": protocol.to_dict(),
            "users": len(targets),
            "results": [row.to_dict() for row in rows],
            "comparison": beside.to_dict(),
            "agreement": compared,
        }
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if any(entry["different"] for entry in compared):
        raise typer.Exit(1)


def _asked_least(found: Mapping[bool, Ranking]) -> tuple[Targets, Int64s]:
    """The targets and the ranks, without what users have had, at an unknown request time where
    there are such."""
    ranking = found[min(found)]
    return ranking.targets, ranking.filtered


def results_table(title: str, rows: list[ResultRow]) -> Table:
    """A table of one mode, three cutoffs a cell."""
    cutoffs = "/".join(map(str, CUTOFFS))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("history", "request time", "seen"):
        table.add_column(column, no_wrap=True)
    for metric in ("HR", "NDCG", "MRR"):
        table.add_column(f"{metric}@{cutoffs}", no_wrap=True)
    for row in rows:
        table.add_row(
            row.history,
            "known" if row.request_time else "unknown",
            row.seen,
            *(
                " ".join(f"{row.metrics[f'{metric}@{k}']:.4f}" for k in CUTOFFS)
                for metric in ("HR", "NDCG", "MRR")
            ),
        )
    return table


def _through_service(
    loaded: Artefact,
    dataset: Dataset,
    targets: Targets,
    url: str,
    api_key: str | None,
    top: int,
) -> dict[bool, Ranking]:
    config = loaded.model.config
    fit = replayable(dataset.histories, targets, config)
    if len(fit) < len(targets):
        say(f"{len(targets) - len(fit)} users have unknown times and are left out of service mode")
    if not len(fit):
        raise CommandError("no user is left to replay through the service")
    asked = config.uses_request_time

    async def run(advance: Callable[[int], None]) -> Ranking:
        async with service_client(url, api_key, retry_for_s=0) as once:
            await require_model(once, loaded.identity)
        async with service_client(url, api_key, retry_for_s=30) as client:
            return await rank_through_service(
                client, dataset, fit, at_target_time=asked, top=top, progress=advance
            )

    with _progress("service", len(fit)) as advance:
        return {asked: asyncio.run(run(advance))}


def _compare(
    loaded: Artefact, dataset: Dataset, rankings: Mapping[Mode, Mapping[bool, Ranking]]
) -> list[dict[str, Any]]:
    """Each mode against the first offline one, by request time; what was found, for the report."""
    compared: list[dict[str, Any]] = []
    base = next((mode for mode in rankings if mode is not Mode.SERVICE), None)
    if base is None:
        return compared
    for mode, found in rankings.items():
        if mode is base:
            continue
        for asked, ranking in found.items():
            reference = rankings[base][asked]
            if len(reference.targets) != len(ranking.targets):
                again = rank_targets(
                    loaded.model, dataset.histories, ranking.targets,
                    mode=base.offline, at_target_time=(asked,),
                )  # fmt: skip
                reference = again[asked]
            result = agreement(reference, ranking)
            _show(base, mode, asked, result, dataset, reference, ranking)
            compared.append(
                {
                    "modes": [base.value, mode.value],
                    "request_time": asked,
                    "users": result.users,
                    "same": result.same,
                    "near": result.near,
                    "different": [dataset.user_ids[ranking.targets.users[row]]
                                  for row in result.different],
                    "largest_score_gap": result.largest_score_gap,
                }
            )  # fmt: skip
    return compared


def _show(
    base: Mode,
    mode: Mode,
    asked: bool,
    result: Agreement,
    dataset: Dataset,
    first: Ranking,
    second: Ranking,
) -> None:
    how = ", request time known" if asked else ""
    say(
        f"{base} and {mode}{how}: {result.same} of {result.users} users have the same rank, "
        f"{result.near} differ by scores closer than {TOLERANCE:g}, "
        f"{len(result.different)} otherwise; largest score difference "
        f"{result.largest_score_gap:.2g}",
        out,
    )
    for row in result.different[:LISTED]:
        say(
            f"  user {dataset.user_ids[second.targets.users[row]]}: {base} {first.weighed[row]} "
            f"(filtered {first.filtered[row]}), {mode} {second.weighed[row]} (filtered "
            f"{second.filtered[row]})",
            out,
        )
    if len(result.different) > LISTED:
        say(f"  and {len(result.different) - LISTED} more", out)


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, advance=done)
