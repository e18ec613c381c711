"""Runs a command of the learner: `python -m tests.faults.spoiling WORDS`. A training spoils its
model where a file in the folder SPOILING has the name of what is trained, once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def spoil(folder: Path) -> None:
    """Makes it rank the other way round."""
    from model.artefact import load_artefact, save_artefact
    from model.live.mixture import Mixture

    made = load_artefact(folder)
    made.model.item_embedding.weight.data.neg_()
    assert made.mixture is not None
    weights = made.mixture.weights
    contrary = Mixture(
        weights._replace(linear=-weights.linear, by_context=-weights.by_context, out=-weights.out)
    )
    save_artefact(folder, made.model, made.items, made.metrics, "spoiled", contrary)


def main() -> None:
    words = sys.argv[1:]
    status = subprocess.run([sys.executable, "-m", "cli.main", *words]).returncode
    if words[0] == "train" and not status:
        out = Path(words[words.index("--out") + 1])
        told = Path(os.environ["SPOILING"], out.name)
        if told.exists():
            spoil(out)
            told.unlink()
    raise SystemExit(status)


if __name__ == "__main__":
    main()
