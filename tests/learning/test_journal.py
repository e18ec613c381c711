from __future__ import annotations

import multiprocessing
import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.journal import FolderJournal, StoredJournal, made, newest, open_journal
from model.artefact_store import open_artefact_store
from model.journal import FILE, Entry

AT = "2026-01-31T12:00:00.000Z"


def entries(number: int) -> list[Entry]:
    return [Entry(AT, "published", model=f"m{place}", events=place) for place in range(number)]


@pytest.mark.parametrize("stored", [False, True])
def test_what_is_appended_is_read(tmp_path: Path, stored: bool) -> None:
    url = str(tmp_path / "models")
    models = open_artefact_store(url)
    journal = StoredJournal(models) if stored else open_journal(url, models)
    assert journal.entries() == []
    full = Entry(
        AT, "refused", "r", "m", "warm", "p", "e", "i", AT, 3, "worse", {"a": [1]}, {"train": 1.5},
        "a\nline", "b",
    )  # fmt: skip
    said = [*entries(3), full]
    for entry in said:
        journal.append(entry)
    assert journal.entries() == said
    assert FolderJournal(tmp_path / "models").entries() == said


@given(number=st.integers(1, 4), cut=st.integers(0, 60))
def test_a_torn_last_line_is_ignored_and_followed_by_a_whole_one(number: int, cut: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = FolderJournal(folder)
        for entry in entries(number):
            journal.append(entry)
        content = (folder / FILE).read_bytes()
        left = content[: max(0, len(content) - cut)]
        (folder / FILE).write_bytes(left)
        whole = entries(number)[: left.count(b"\n")]
        assert journal.entries() == whole
        journal.append(Entry(AT, "pruned"))
        assert journal.entries() == [*whole, Entry(AT, "pruned")]


def _append_many(folder: Path, name: str) -> None:
    for place in range(50):
        FolderJournal(folder).append(Entry(AT, "failed", model=name, events=place))


def test_several_processes_append(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    started = [processes.Process(target=_append_many, args=(tmp_path, name)) for name in "ab"]
    for one in started:
        one.start()
    for one in started:
        one.join()
    for name in "ab":
        own = [entry.events for entry in FolderJournal(tmp_path).entries() if entry.model == name]
        assert own == list(range(50))


def test_without_room_nothing_of_an_entry_stays(tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path)
    for entry in entries(3):
        journal.append(entry)
    size = (tmp_path / FILE).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        with pytest.raises(OSError, match=r".*"):
            journal.append(Entry(AT, "failed"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / FILE).stat().st_size == size
    assert journal.entries() == entries(3)


def test_a_line_that_is_no_entry_and_a_newer_field_do_no_harm(tmp_path: Path) -> None:
    lines = ["[1]", "{}", "nonsense", f'{{"at": "{AT}", "what": "trial", "later": 1}}', ""]
    (tmp_path / FILE).write_text("\n".join(lines))
    assert FolderJournal(tmp_path).entries() == [Entry(AT, "trial")]


def test_newest_and_made() -> None:
    said = [
        Entry("2026-01-01T00:00:00Z", "published", model="a", step="warm"),
        Entry("2026-01-02T00:00:00Z", "promoted", model="a", step="warm"),
        Entry("2026-01-03T00:00:00Z", "refused", step="scoring"),
        Entry("2026-01-04T00:00:00Z", "published", model="b", step="warm"),
        Entry("2026-01-05T00:00:00Z", "failed", step="scratch"),
    ]
    assert newest(said, "published") == said[3]
    assert newest(said, "published", "promoted", model="a") == said[1]
    assert newest(said, "pruned") is None
    day = 86_400
    first = 1_767_225_600
    assert made(said) == {"warm": first + 3 * day, "scoring": first + 2 * day}
