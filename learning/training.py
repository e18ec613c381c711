"""The first half of a round: from the log to a model that may be published."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from learning import metrics
from learning.commands import Commands
from learning.exported_log import NewEvents
from learning.journal import Journal, about, rolled_back
from learning.round import Round
from learning.settings import LearnSettings
from learning.trained import Trained
from model.artefact import CONFIG
from model.artefact_store import ArtefactStore
from model.plain_file import read_plain
from model.strict_json import parse
from model.times import iso
from model.trained_kinds import trained_kinds

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
GOOD = ("better", "not worse")
VERDICTS = (*GOOD, "worse", "below counting", "undecided")
_VERDICT_BYTES = 1 << 20


class Training:
    """Each part finds what it has finished before, and returns the round as it goes on, or None
    where it ends. Raises CommandFailed, ArtefactStoreError, OSError, ValueError."""

    def __init__(
        self, settings: LearnSettings, models: ArtefactStore, journal: Journal, commands: Commands
    ) -> None:
        self._settings, self._models, self._journal = settings, models, journal
        self._commands = commands

    async def incumbent(self, name: str | None) -> Path | None:
        """The folder of what is served; None: it is not to be had."""
        if name is None:
            return self._settings.incumbent
        return await asyncio.to_thread(self._models.fetch, name, self._settings.work / "cache")

    async def published_as(self, editions: frozenset[str]) -> str | None:
        """The name of the one edition that is served, if it is published too."""
        if len(editions) != 1:
            return None
        names = await asyncio.to_thread(self._models.names)
        return next((name for name, edition in names.items() if edition in editions), None)

    async def export(self, going: Round) -> Round | None:
        """The log; None: too little has happened."""
        folder = self._settings.work / "exports" / going.id
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            # An export that failed may have failed because of the earlier one.
            before = None if going.failures else newest_export(folder.parent, going.id)
            since = [] if before is None else ["--since", str(before)]
            going = await self._run(going, "export", "export-log", str(folder), *since)
        parent = await self.incumbent(going.incumbent)
        after = None if parent is None else (await asyncio.to_thread(Trained.read, parent)).until_ms
        new = await asyncio.to_thread(NewEvents.read, folder, after)
        metrics.NEW_EVENTS.set(len(new))
        going = replace(going, events=len(new))
        if len(new) < max(1, self._settings.least_events):
            return None
        if parent is None:
            return replace(going, stage="final")
        cut = new.cut(self._settings.judged_share, self._settings.least_judged)
        return None if cut is None else replace(going, stage="candidate", since=iso(cut))

    async def candidate(self, going: Round) -> Round:
        """Trained on all but the newest events."""
        assert going.since is not None
        parent = await self.incumbent(going.incumbent)
        going = await self._train(going, "candidate", parent, ["--until", going.since])
        return replace(going, stage="judge")

    async def judge(self, going: Round) -> Round | None:
        """None: the candidate is refused."""
        assert going.since is not None
        verdict = self._folder(going) / "verdict.json"
        if not verdict.exists():
            parent = await self.incumbent(going.incumbent)
            partial = verdict.with_suffix(".partial")
            going = await self._run(
                going, "judge", "judge", str(parent), str(self._folder(going) / "candidate"),
                str(self._export(going)), "--since", going.since,
                "--margin", str(self._settings.margin), "--json", str(partial), accepted=(0, 3, 4),
            )  # fmt: skip
            partial.rename(verdict)
        figures = parse(read_plain(verdict, _VERDICT_BYTES), constants=True)
        going = replace(going, stage="final", verdict=figures["verdict"], figures=figures)
        for one in VERDICTS:
            metrics.VERDICT.labels(one).set(one == going.verdict)
        for metric, difference in figures["difference"].items():
            metrics.DIFFERENCE.labels(metric).set(difference["mean"])
        if going.verdict in GOOD:
            return going
        await self._refused(going, f"the judge: {going.verdict}")
        return None

    async def final(self, going: Round) -> Round | None:
        """Trained on every row; None: it is not to be published."""
        parent = await self.incumbent(going.incumbent)
        if going.step == "scratch" and parent is not None:
            candidate = str(self._folder(going) / "candidate")
            going = await self._make(going, "final", ["--from", candidate])
        else:
            going = await self._train(going, "final", parent, [])
        made = await asyncio.to_thread(Trained.read, self.final_folder(going))
        if parent is not None and made.edition == Trained.read(parent).edition:
            await self._refused(going, "it is what is served already")
            return None
        if made.edition in rolled_back(await asyncio.to_thread(self._journal.entries)):
            await self._refused(going, "it was rolled back before")
            return None
        name = f"{going.id}-{going.step}-{made.edition[:8]}"
        return replace(
            going, stage="publish", name=name, edition=made.edition, identity=made.identity,
            until=iso(made.until_ms),
        )  # fmt: skip

    async def states(self, going: Round) -> Round:
        """All states in advance, where they are others than the incumbent's."""
        parent = await self.incumbent(going.incumbent)
        same = parent is not None and Trained.read(parent).identity == going.identity
        if self._settings.warm_states and not same:
            going = await self._run(going, "states", "warm", str(self.final_folder(going)))
        return replace(going, stage="switch")

    def final_folder(self, going: Round) -> Path:
        return self._folder(going) / "final"

    def tidy(self) -> None:
        """Deletes what rounds have left in the work folder, but for the newest export."""
        work = self._settings.work
        shutil.rmtree(work / "rounds", ignore_errors=True)
        newest = newest_export(work / "exports", "")
        for folder in (work / "exports").glob("*"):
            if folder != newest:
                shutil.rmtree(folder, ignore_errors=True)

    async def _refused(self, going: Round, why: str) -> None:
        logger.info("round %s: the candidate is refused: %s", going.id, why)
        metrics.ROUNDS.labels("refused").inc()
        entry = about(going, "refused", reason=why, figures=going.figures, seconds=going.seconds)
        await asyncio.to_thread(self._journal.append, entry)

    async def _train(
        self, going: Round, part: str, parent: Path | None, options: list[str]
    ) -> Round:
        if going.step == "scratch":
            rules = None if parent is None else await asyncio.to_thread(trained_kinds, parent)
            kinds = [] if rules is None else ["--kinds", str(rules)]
            options = [*kinds, *self._settings.scratch_options, *options]
        elif parent is not None:
            options = ["--from", str(parent), *options]
        if going.step == "scoring":
            options = ["--scoring-only", *options]
        return await self._make(going, part, options)

    async def _make(self, going: Round, part: str, options: list[str]) -> Round:
        out = self._folder(going) / part
        if (out / CONFIG).exists():
            return going
        items = self._settings.items
        if items is not None and going.step != "scoring":
            options = ["--items", str(items), *options]
        log = str(self._export(going))
        return await self._run(going, part, "train", log, *options, "--out", str(out))

    async def _run(
        self, going: Round, part: str, *words: str, accepted: Collection[int] = (0,)
    ) -> Round:
        folder = self._folder(going)
        folder.mkdir(parents=True, exist_ok=True)
        ended = await self._commands.run(words, folder / f"{part}.log", accepted)
        metrics.PART_DURATION.labels(part).set(ended.seconds)
        return replace(going, seconds={**going.seconds, part: round(ended.seconds, 1)})

    def _folder(self, going: Round) -> Path:
        return self._settings.work / "rounds" / going.id

    def _export(self, going: Round) -> Path:
        return self._settings.work / "exports" / going.id


def newest_export(folder: Path, other_than: str) -> Path | None:
    """The newest export that was finished."""
    found = [one.parent for one in folder.glob(f"*/{MANIFEST}") if one.parent.name != other_than]
    return max(found, default=None)
