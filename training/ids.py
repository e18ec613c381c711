"""Ids that mean the same and are not written the same: in one table, or in two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from training.tables import InputError


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many of some ids are among others. near: how many are only when they are written
    otherwise; example: one of these, and what it is there."""

    ids: int
    shared: int
    near: int
    example: tuple[str, str] | None

    @classmethod
    def of(cls, ids: pl.Series, others: Sequence[str] | pl.Series) -> Overlap:
        own = pl.DataFrame({"own": ids.unique()}, schema={"own": pl.String})
        there = pl.DataFrame({"there": others}, schema={"there": pl.String}).unique()
        unknown = own.join(there, left_on="own", right_on="there", how="anti")
        near = (
            unknown.with_columns(_without_zeros("own").alias("plain"))
            .join(there.with_columns(_without_zeros("there").alias("plain")), on="plain")
            .unique("own")
            .sort("own")
        )
        example = near.select("own", "there").row(0) if len(near) else None
        return cls(len(own), len(own) - len(unknown), len(near), example)

    def require(self, ours: str, whose: str) -> str | None:
        """What is to be said of the ids that are written otherwise.

        Args:
            ours: what the ids are called, such as `the log's items`.
            whose: where they are looked for.

        Raises:
            InputError: none of them is there.
        """
        told = ""
        if self.example is not None:
            own, there = self.example
            told = f" ({own!r} here, {there!r} there): write ids the same way in both"
        if self.ids and not self.shared:
            raise InputError(
                f"none of {ours}, {self.ids:,}, is in {whose}"
                + (told or ": they are ids of something else")
            )
        if not self.near:
            return None
        return (
            f"{self.near:,} of {ours}, {self.ids:,}, are in {whose} under another spelling alone"
            f"{told}"
        )


def doubles(ids: pl.Series) -> str | None:
    """How many ids differ from another one by case, blanks or a final .0 alone."""
    own = pl.DataFrame({"own": ids.unique()}, schema={"own": pl.String})
    plain = own.with_columns(_plain("own").alias("plain"))
    found = plain.filter(pl.len().over("plain") > 1).sort("plain", "own")
    if found.is_empty():
        return None
    first, second = found["own"].head(2)
    return (
        f"{len(found):,} values of {ids.name} differ from another by case, blanks or a final .0 "
        f"alone, such as {first!r} and {second!r}: they count as different; write them the same "
        "way if they are the same"
    )


def _plain(name: str) -> pl.Expr:
    return pl.col(name).str.strip_chars().str.to_lowercase().str.replace(r"\.0+$", "")


def _without_zeros(name: str) -> pl.Expr:
    return _plain(name).str.strip_chars_start("0")
