"""Waves by the kernels of a GPU, interpreted where there is none, answer as others do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import ModelConfig, TiM4Rec
from model.artefact import Artefact, load_artefact
from model.device_stepper import DeviceStepper
from model.kernels import Kernels
from service.engine.batch_runner import BatchRunner
from service.engine.capacity import ON_CPU, pool_rows, rows_within
from service.engine.engine import Engine
from service.engine.quality import Judged, QualitySampler
from service.store.client import Store
from service.store.event_log import EventLog, LogRequest
from service.store.events import NewEvent, new_uid
from tests.model.conftest import device, kernels  # noqa: F401
from tests.service.processes import BASE_MS, make_artefact

ITEMS = [f"i{n}" for n in range(12)]
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device") / "model"
    make_artefact(folder, ITEMS)
    return folder


@pytest.fixture
def served(folder: Path, kernels: Kernels, device: torch.device) -> Artefact:  # noqa: F811
    artefact = load_artefact(folder, device)
    artefact.model.use(kernels)
    return artefact


@pytest.fixture
def engines(folder: Path, served: Artefact, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of one store: by the kernels, and by the CPU's stepper."""
    # It takes the interpreter minutes.
    monkeypatch.setattr(BatchRunner, "warm_up", lambda self, users: None)
    options = {"pool_capacity": 8, "max_batch": 2, "snapshot_every": 4, "erasure_poll_s": 60}

    async def start(store: Store) -> tuple[Engine, Engine]:
        pair = tuple(
            Engine(one, EventLog(store, page=50), **options)  # type: ignore[arg-type]
            for one in (served, load_artefact(folder, "cpu"))
        )
        for engine in pair:
            await engine.start()
        return pair  # type: ignore[return-value]

    return start


def test_answers_are_those_of_the_cpu(engines: Any, store_url: str, run: Run) -> None:
    async def go() -> None:
        async with Store(store_url) as store:
            by_kernels, by_cpu = await engines(store)
            assert isinstance(by_kernels.runner.stepper, DeviceStepper)
            events = [
                NewEvent(new_uid(), ITEMS[i * 5 % 12], BASE_MS + i * i * 10**6, None)
                for i in range(14)
            ]
            # Steps, a rebuild by prefill, a snapshot, seen items kept and not.
            for writer, part in ((by_kernels, events[:3]), (by_cpu, events[3:13])):
                for event in part:
                    await writer.append("ann", [event])
            await by_kernels.append("ann", events[13:])
            for options in ({}, {"exclude_seen": False}, {"at_ms": BASE_MS + 10**12}):
                answers = [await e.recommend("ann", 5, **options) for e in (by_kernels, by_cpu)]
                found, wanted = (answer.ranking for answer in answers)
                assert answers[0].version == answers[1].version == 14
                np.testing.assert_array_equal(found.items, wanted.items)
                np.testing.assert_allclose(found.scores, wanted.scores, rtol=0, atol=1e-4)
            one, other = [await engine.resident("ann") for engine in (by_kernels, by_cpu)]
            assert one.mark == other.mark
            for name, part in other.state.parts.items():
                torch.testing.assert_close(one.state[name].cpu(), part, rtol=0, atol=1e-4)
            for engine in (by_kernels, by_cpu):
                await engine.stop()

    run(go())


def test_events_are_judged_as_on_the_cpu(engines: Any, store_url: str, run: Run) -> None:
    class Recorded(QualitySampler):
        found: list[Judged]

        def judged(self, *chosen: Any) -> list[Judged]:
            self.found += super().judged(*chosen)
            return []

    async def judged(engine: Engine, user: str) -> list[Judged]:
        quality = engine.runner.quality = Recorded(1, engine.vocabulary.get)
        quality.found = []
        await engine.recommend(user, 1)
        for place, n in enumerate((0, 7, 2, 9, 4)):
            event = NewEvent(new_uid(), ITEMS[n], BASE_MS + place * place * 10**6)
            await engine.append(user, [event])
        elsewhere = [NewEvent(new_uid(), ITEMS[n], BASE_MS + 10**9 + n) for n in (1, 3)]
        await engine.log.exchange([LogRequest(user, events=elsewhere)])
        await engine.append(user, [NewEvent(new_uid(), ITEMS[8], BASE_MS + 10**10)])
        found = await engine.recommend(user, 3)
        assert found.version == 8
        assert len(quality.found) == 6
        return quality.found

    async def go() -> None:
        async with Store(store_url) as store:
            by_kernels, by_cpu = await engines(store)
            assert await judged(by_kernels, "kim") == await judged(by_cpu, "lea")
            for engine in (by_kernels, by_cpu):
                await engine.stop()

    run(go())


def test_a_wave_is_one_transfer_in(
    engines: Any, store_url: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[int] = []
    upload = DeviceStepper._upload

    def watched(self: DeviceStepper, parts: Any) -> torch.Tensor:
        uploads.append(len(parts))
        return upload(self, parts)

    async def go() -> None:
        async with Store(store_url) as store:
            engine, other = await engines(store)
            event = NewEvent(new_uid(), ITEMS[3], BASE_MS, None)
            await engine.append("bob", [event])
            await engine.recommend("bob", 3)
            monkeypatch.setattr(DeviceStepper, "_upload", watched)
            # An event that the row lacks, and a read: one wave.
            await other.append("bob", [NewEvent(new_uid(), ITEMS[4], BASE_MS + 5, None)])
            answer = await engine.recommend("bob", 3)
            assert answer.version == 2
            assert uploads == [1 + 4]
            # Without a read the step is taken all the same, before the wave is over.
            await engine.append("bob", [NewEvent(new_uid(), ITEMS[5], BASE_MS + 9, None)])
            row = engine.pool.get("bob")
            assert row is not None
            await engine.stop()  # which finishes the wave
            assert int(engine.pool.states["count"][row.slot]) == 3
            assert uploads == [1 + 4, 1]
            await other.stop()

    run(go())


def test_a_wave_that_fails_leaves_no_step_behind(
    engines: Any, store_url: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with Store(store_url) as store:
            engine, other = await engines(store)
            await engine.append("eve", [NewEvent(new_uid(), ITEMS[3], BASE_MS, None)])
            await engine.recommend("eve", 3)
            with monkeypatch.context() as broken:
                broken.setattr(DeviceStepper, "send", _fail)
                await engine.append("eve", [NewEvent(new_uid(), ITEMS[4], BASE_MS + 9, None)])
                with pytest.raises(RuntimeError, match="the device failed"):
                    await engine.recommend("eve", 3)
            assert "eve" not in engine.pool.users()
            answers = [await e.recommend("eve", 3) for e in (engine, other)]
            np.testing.assert_array_equal(answers[0].ranking.items, answers[1].ranking.items)
            assert answers[0].version == 2
            await engine.stop()
            await other.stop()

    run(go())


def _fail(self: DeviceStepper, *arrays: Any) -> None:
    raise RuntimeError("the device failed")


def test_the_pool_takes_what_is_free() -> None:
    layout = TiM4Rec(ModelConfig(n_items=3)).state_layout
    cpu = torch.device("cpu")
    assert layout.nbytes() == 37_648
    assert pool_rows(None, layout, cpu) == ON_CPU
    assert pool_rows(77, layout, torch.device("cuda")) == 77
    free = 141 * 10**9  # an H200's
    rows = rows_within(free, layout)
    assert rows * layout.nbytes() <= 0.9 * free < (rows + 1) * layout.nbytes()
    assert rows > 3_300_000
    assert rows_within(0, layout) == 1
    left, sizes = free, list[int]()  # models opened one beside the other
    for _ in range(3):
        sizes.append(rows_within(left, layout, 3) * layout.nbytes())
        left -= sizes[-1]
    assert sizes[0] > sizes[1] > sizes[2] > 0.1 * free


def test_a_models_copy_uses_the_same_kernels(served: Artefact) -> None:
    assert copy.deepcopy(served.model).kernels is served.model.kernels
