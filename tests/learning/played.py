"""Plays the commands that the learner runs, on artefacts that lie ready: `python played.py WORDS`.

Where it is told so by its environment: PLAYED_FOLDER (log/, artefacts/*, calls), PLAYED_VERDICT,
PLAYED_FAILS (a command, fails), PLAYED_SLEEPS_S.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

STATUS = {"better": 0, "not worse": 0, "worse": 3, "below counting": 3, "undecided": 4}


def after(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def copied(source: Path, out: Path) -> None:
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.copytree(source, partial)
    partial.rename(out)


def train(words: list[str], folder: Path, calls: int) -> None:
    """Each run makes another artefact; it says what it was told."""
    ready = sorted((folder / "artefacts").iterdir())
    out = Path(after(words, "--out") or "")
    copy = folder / f".made.{os.getpid()}"
    shutil.copytree(ready[calls % len(ready)], copy)
    until = after(words, "--until") or (folder / "log" / "newest").read_text()
    step = "scoring" if "--scoring-only" in words else "warm" if "--from" in words else "scratch"
    metrics = {"until": until, "step": step, "parent": after(words, "--from")}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    copied(copy, out)


def judge(words: list[str]) -> None:
    verdict = os.environ.get("PLAYED_VERDICT", "better")
    difference = {"NDCG@10": {"mean": 0.01, "low": 0.001, "high": 0.02}}
    report = {"verdict": verdict, "events": 9, "users": 3, "difference": difference}
    Path(after(words, "--json") or "").write_text(json.dumps(report))
    raise SystemExit(STATUS[verdict])


def main() -> None:
    words, folder = sys.argv[1:], Path(os.environ["PLAYED_FOLDER"])
    with (folder / "calls").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    time.sleep(float(os.environ.get("PLAYED_SLEEPS_S", "0")))
    if os.environ.get("PLAYED_FAILS") == words[0]:
        print("some progress", file=sys.stderr)
        print("error: it can't be done", file=sys.stderr)
        raise SystemExit(1)
    if words[0] == "export-log":
        copied(folder / "log", Path(words[1]))
    elif words[0] == "train":
        train(words, folder, len((folder / "calls").read_text().splitlines()))
    elif words[0] == "judge":
        judge(words)


if __name__ == "__main__":
    main()
