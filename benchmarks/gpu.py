"""What a GPU does, beside what it could do at best by its own memory and arithmetic.

    python -m benchmarks.gpu --json runs/gpu.json
    python -m benchmarks.gpu --log ml-1m/interactions.csv.gz      # an epoch of training, too
    python -m benchmarks.gpu --device cpu --small                 # that it runs, without a GPU

The limits are measured in the same run: bytes a second of a copy within the device, read and
written ones counted, and operations a second of a product of float32 matrices without TF32. A step
must read and write each user's state once; the prefill, its products of matrices; top-K, read the
item table once. Device times are CUDA events around whole calls, medians over rounds, of a default
model with random weights. The service, with its own store, is asked over HTTP.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from benchmarks import http_load, running
from benchmarks.http_load import closed_loop
from cli.console import errors_without_traceback, out, say
from model import ModelConfig, TiM4Rec
from model.artefact import load_artefact, save_artefact
from model.compiled_stepper import CompiledStepper
from model.device_stepper import DeviceStepper
from model.items import Items
from model.kernels import choose
from service.catalogue.ask import Ask
from service.catalogue.retrieval import Retrieval
from service.engine.batch_runner import DEVICE_PREFILL_CELLS
from training.dataset import Protocol, build_dataset
from training.interactions import read_log
from training.recipe import model_config, training_config
from training.trainer import Epoch, train

N_ITEMS = 12_101
HOUR_MS = 3_600_000
IN_FLIGHT = 64
RATES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Sizes:
    batches: tuple[int, ...] = (1, 16, 256, 4096, 65_536)
    pool: int = 4 * 65_536  # more than any cache holds
    prefill_users: int = 4096
    prefill_events: int = 200
    items: int = 1_000_000
    waves: tuple[int, ...] = (1, 128)
    copied: int = 2**33
    matrix: int = 8192
    rounds: int = 30
    service_users: int = 20_000
    service_s: float = 8.0


SMALL = Sizes(
    (1, 3), 8, 6, 20, 500, (1, 2), 2**22, 128, 2, service_users=50, service_s=1.0
)  # fmt: skip


@dataclass
class Row:
    """`least_us`: the time by the measured limit alone; `share`: that of the time taken."""

    what: str
    size: int
    us: float
    rate: float
    unit: str
    least_us: float | None = None

    @property
    def share(self) -> float | None:
        return None if self.least_us is None else self.least_us / self.us


class Bench:
    """Figures of one device.

    Args:
        kernels: `auto`, `triton` or `reference`.
    """

    def __init__(self, device: torch.device, kernels: Any, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self.on_gpu = device.type == "cuda"
        torch.manual_seed(0)
        self.model = TiM4Rec(ModelConfig(n_items=N_ITEMS)).eval().to(device)
        self.kernels = choose(kernels, device)
        self.model.use(self.kernels)
        self.draw = np.random.default_rng(0)
        self.bytes_s = self._copy()
        self.flops = self._products()

    def median_s(self, run: Callable[[], object], repeat: int = 1) -> float:
        """Seconds of one call."""
        taken: list[float] = []
        for turn in range(self.sizes.rounds + 2):  # two to warm up
            if self.on_gpu:
                event: Any = torch.cuda.Event
                begin, end = event(enable_timing=True), event(enable_timing=True)
                torch.cuda.synchronize(self.device)
                begin.record()
                for _ in range(repeat):
                    run()
                end.record()
                torch.cuda.synchronize(self.device)
                seconds = begin.elapsed_time(end) / 1000
            else:
                started = time.perf_counter()
                for _ in range(repeat):
                    run()
                seconds = time.perf_counter() - started
            if turn > 1:
                taken.append(seconds / repeat)
        return statistics.median(taken)

    def _copy(self) -> float:
        source = torch.empty(self.sizes.copied // 2, dtype=torch.uint8, device=self.device)
        source.random_(256)
        target = torch.empty_like(source)
        return 2 * source.numel() / self.median_s(lambda: target.copy_(source))

    def _products(self) -> float:
        n = self.sizes.matrix
        a, b = (torch.randn(n, n, device=self.device) for _ in range(2))
        result = torch.empty_like(a)
        operations = 2.0 * n * n * n
        return operations / self.median_s(lambda: torch.mm(a, b, out=result))

    def limits(self) -> list[Row]:
        copied, n = self.sizes.copied, self.sizes.matrix
        return [
            Row("copy", copied, copied / self.bytes_s * 1e6, self.bytes_s / 1e9, "GB/s"),
            Row("product, float32", n, 2e6 * n**3 / self.flops, self.flops / 1e12, "TFLOP/s"),
        ]

    # -- each part -----------------------------------------------------------------------

    def steps(self) -> list[Row]:
        """A step of so many users of a pool, at places drawn at random."""
        found = []
        pool = self.model.new_state(self.sizes.pool)
        stepper: CompiledStepper | DeviceStepper | None = None
        if self.kernels is not None:
            stepper = DeviceStepper(self.model, pool, self.kernels, graphs=self.on_gpu)
        elif not self.on_gpu:
            stepper = CompiledStepper(self.model, pool)
        for batch in self.sizes.batches:
            repeat = max(1, 64 // batch)
            turns = [self._events(batch) for _ in range(8)]
            there = [torch.from_numpy(np.stack(turn)).to(self.device) for turn in turns]
            number = 0

            def step(turns: Any = turns, there: Any = there) -> None:
                nonlocal number
                number += 1
                if isinstance(stepper, DeviceStepper):
                    stepper.take(there[number % 8])
                elif stepper is not None:
                    stepper.step(*turns[number % 8])
                else:
                    index, items, times = there[number % 8]
                    pool.write(index, self.model.step(items, times, pool.rows(index)))

            seconds = self.median_s(step, repeat)
            least = 2 * self.model.state_layout.nbytes() * batch / self.bytes_s
            found.append(Row("step", batch, seconds * 1e6, batch / seconds, "users/s", least * 1e6))
        return found

    def _events(self, batch: int) -> tuple[Any, Any, Any]:
        slots = self.draw.permutation(self.sizes.pool)[:batch]
        items = self.draw.integers(1, N_ITEMS + 1, batch)
        return slots, items, self.draw.integers(0, 10**12, batch)

    def wave_of_one(self) -> list[Row]:
        """A step and ten recommendations of one user, from the host and back."""
        if self.kernels is None:
            return []
        stepper = DeviceStepper(
            self.model, self.model.new_state(16), self.kernels, graphs=self.on_gpu
        )
        popularity = np.arange(N_ITEMS, 0, -1)
        items = Items([str(i) for i in range(N_ITEMS)], popularity)
        retrieval = Retrieval(self.model.item_embedding.weight, items)
        one = np.array([3])
        seen = np.stack([np.zeros(50, np.int64), np.arange(1, 51)])
        none = np.empty((2, 0), np.int64)

        def wave() -> None:
            stepper.step(one, one, one * HOUR_MS)
            index, at, masked, had = stepper.send(one, one * 2 * HOUR_MS, seen, none)
            query = stepper.query(index, at)
            retrieval.answer(query, [Ask(10)], (masked, had))
            stepper.settle()

        seconds = self.median_s(wave)
        return [Row("wave of one", 1, seconds * 1e6, 1 / seconds, "waves/s")]

    def prefill(self) -> list[Row]:
        users, events = self.sizes.prefill_users, self.sizes.prefill_events
        state = self.model.new_state(users)
        items = torch.randint(1, N_ITEMS + 1, (users, events), device=self.device)
        times = torch.randint(0, HOUR_MS, (users, events), device=self.device).cumsum(1)
        lengths = torch.full((users,), events, device=self.device)
        at_once = max(1, DEVICE_PREFILL_CELLS // events)

        def run() -> None:
            for start in range(0, users, at_once):
                part = slice(start, start + at_once)
                rows = torch.arange(users, device=self.device)[part]
                self.model.prefill(items[part], times[part], lengths[part], state.rows(rows))

        seconds = self.median_s(run)
        c = self.model.config
        a_layer = c.d_model * (2 * c.d_inner + 2 * c.d_state + c.n_heads)
        a_layer += c.d_inner * c.d_model + 8 * c.d_model**2
        tokens = users * events
        least = 2 * tokens * c.n_layers * a_layer / self.flops
        return [Row("prefill", tokens, seconds * 1e6, tokens / seconds, "events/s", least * 1e6)]

    def top_k(self) -> list[Row]:
        found, count, d = [], self.sizes.items, self.model.config.d_model
        table = torch.randn(count + 1, d, device=self.device)
        names = Items([str(i) for i in range(count)], np.ones(count, np.int64))
        retrieval = Retrieval(table, names)
        for wave in self.sizes.waves:
            query = torch.randn(wave, d, device=self.device)
            asks = [
                Ask(10, self.draw.integers(1, count + 1, 200).astype(np.int32)) for _ in range(wave)
            ]
            seconds = self.median_s(partial(retrieval.answer, query, asks))
            least = max(
                4 * count * d / self.bytes_s,
                2 * wave * count * d / self.flops,
            )
            row = Row(
                f"top 10 of {count:,}", wave, seconds * 1e6, wave / seconds, "reads/s", least * 1e6
            )
            found.append(row)
        return found

    def training(self, log: Path) -> list[Row]:
        """The second epoch of each precision."""
        dataset = build_dataset(read_log(log), Protocol())
        found = []
        for precision in RATES:
            taken: list[float] = []

            def after(epoch: Epoch[TiM4Rec], taken: list[float] = taken) -> None:
                taken.append(epoch.training_seconds)

            settings = training_config(
                dataset,
                device=str(self.device),
                precision=precision,
                kernels="reference" if self.kernels is None else "triton",
                max_epochs=2,
                validation_users=100,
            )
            train(dataset, model_config(dataset), settings, after_epoch=after)
            seconds, targets = taken[-1], dataset.n_train_targets
            found.append(
                Row(f"epoch, {precision}", targets, seconds * 1e6, targets / seconds, "targets/s")
            )
        return found


def over_http(device: str, kernels: str, sizes: Sizes) -> list[Row]:
    """Requests a second of the whole service, 64 in flight."""
    found = []
    with tempfile.TemporaryDirectory() as scratch, running.store() as url:
        folder = Path(scratch, "model")
        torch.manual_seed(0)
        model = TiM4Rec(ModelConfig(n_items=N_ITEMS)).eval()
        names = [f"i{i}" for i in range(N_ITEMS)]
        items = Items(names, np.arange(N_ITEMS, 0, -1))
        save_artefact(folder, model, items, {}, "for benchmarks.gpu")
        known = load_artefact(folder).items.ids
        running.fill(url, known, sizes.service_users, (20, 20))
        options = ("--device", device, "--kernels", kernels, "--pool-capacity", "32768")
        with running.service(folder, url, *options) as server:
            users, seconds = sizes.service_users, sizes.service_s
            everyone = itertools.cycle(http_load.everyone(users))  # into the pool
            closed_loop(server.port, everyone, IN_FLIGHT, 2 * seconds)
            for name, requests in (
                ("GET /recommend", http_load.reads(users)),
                ("POST /interactions", http_load.writes(users, known)),
                ("4 GET to 1 POST", http_load.mixed(users, known)),
            ):
                outcome = closed_loop(server.port, requests, IN_FLIGHT, seconds)
                if outcome.failures:
                    raise RuntimeError(f"{name}: other statuses than 200: {outcome.failures}")
                row = Row(
                    f"{name} on {device}", IN_FLIGHT, outcome.ms(50) * 1e3, outcome.rate, "req/s"
                )
                found.append(row)
    return found


def main(
    device: Annotated[str, typer.Option(help="cuda, cuda:1, ...; cpu only to try it.")] = "cuda",
    kernels: Annotated[str, typer.Option(help="auto, triton or reference.")] = "auto",
    log: Annotated[
        Path | None, typer.Option(help="Interactions to measure an epoch of training on.")
    ] = None,
    small: Annotated[bool, typer.Option(help="Sizes that show nothing but that it runs.")] = False,
    http: Annotated[bool, typer.Option(help="Measure the whole service, too.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure what a GPU does, beside its limits."""
    sizes = SMALL if small else Sizes()
    torch.set_num_threads(1)
    with errors_without_traceback():
        place = torch.device(device)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("no GPU is found; --device cpu --small shows that this runs")
        torch.backends.cuda.matmul.allow_tf32 = False
        bench = Bench(place, kernels, sizes)
        used = "reference" if bench.kernels is None else "triton"
        name = torch.cuda.get_device_name(place) if bench.on_gpu else "CPU"
        say(f"{name}, torch {torch.__version__}, kernels: {used}")
        rows = bench.limits()
        with torch.inference_mode():
            for part in (bench.steps, bench.wave_of_one, bench.prefill, bench.top_k):
                rows += part()
                if bench.on_gpu:
                    torch.cuda.empty_cache()
        rows += [] if log is None else bench.training(log)
        if http:
            for one in dict.fromkeys((device, "cpu")):
                rows += over_http(one, kernels if one == device else "auto", sizes)
    table = Table("", "size", "us", "", "", "at least us", "share of the limit")
    for row in rows:
        least = "" if row.least_us is None else f"{row.least_us:,.1f}"
        share = "" if row.share is None else f"{row.share:.0%}"
        table.add_row(row.what, f"{row.size:,}", f"{row.us:,.1f}", f"{row.rate:,.4g}", row.unit,
                      least, share)  # fmt: skip
    out.print(table)
    if json_file is not None:
        found = {
            "machine": {"device": name, "torch": torch.__version__, "kernels": used},
            "rows": [asdict(row) | {"share": row.share} for row in rows],
        }
        json_file.write_text(json.dumps(found, indent=2) + "\n")
        say(f"written to {json_file}")


if __name__ == "__main__":
    typer.run(main)
