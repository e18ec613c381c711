"""Data parallelism: processes started by `torchrun` share the batch of every step."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.batches import Batch


def rank() -> int:
    """This process's number among those of `torchrun`, 0 where there is only one."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def local_rank() -> int | None:
    """This process's number on this machine, and so that of its GPU; None without `torchrun`."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_torchelastic_launched() else None


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of one training run; by default this one alone."""

    rank: int = 0
    size: int = 1

    def share(self, batch: Batch) -> Batch:
        """This process's rows of a batch, maybe none."""
        rows = slice(self.rank, None, self.size)
        return batch.map(lambda part: part[rows])

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """What each process passed, in the order of their ranks."""
        found = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def sum_gradients(self, model: nn.Module, sparse: Tensor | None) -> None:
        """Sums each parameter's gradient over all processes.

        Args:
            sparse: the parameter whose gradient is sparse.
        """
        if self.size == 1:
            return
        dense = [p for p in model.parameters() if p is not sparse]
        # A process without rows has no gradients, and one that none has stays None.
        present = torch.tensor([float(p.grad is not None) for p in dense], device=dense[0].device)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in dense]
        flat = self.sum(torch.cat([present, *(part.flatten() for part in parts)]))
        counts = flat[: len(dense)].tolist()
        summed = torch.split(flat[len(dense) :], [part.numel() for part in parts])
        for parameter, found, value in zip(dense, counts, summed, strict=True):
            parameter.grad = value.view_as(parameter) if found else None
        if sparse is not None:
            sparse.grad = self._sum_sparse(sparse)

    def _sum_sparse(self, parameter: Tensor) -> Tensor:
        rows = torch.zeros(0, dtype=torch.int64, device=parameter.device)
        values = parameter.new_zeros(0, parameter.shape[1])
        if parameter.grad is not None:
            gradient = parameter.grad.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
        counts = self.gather(len(rows))
        # Collectives need equal sizes, so all are padded to the longest.
        padded_rows, padded_values = (
            rows.new_zeros(max(counts)),
            values.new_zeros(max(counts), parameter.shape[1]),
        )
        padded_rows[: len(rows)], padded_values[: len(rows)] = rows, values
        all_rows = [torch.empty_like(padded_rows) for _ in counts]
        all_values = [torch.empty_like(padded_values) for _ in counts]
        dist.all_gather(all_rows, padded_rows)
        dist.all_gather(all_values, padded_values)
        return torch.sparse_coo_tensor(
            torch.cat([part[:n] for part, n in zip(all_rows, counts, strict=True)])[None],
            torch.cat([part[:n] for part, n in zip(all_values, counts, strict=True)]),
            parameter.shape,
            check_invariants=False,
        ).coalesce()


def join(device: str) -> Group:
    """The group of the processes that `torchrun` started; NCCL on GPUs, else Gloo."""
    if not dist.is_torchelastic_launched():
        return Group()
    if not dist.is_initialized():
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if on_gpu else "gloo")
        # Not after each run: a second group would find the first one's addresses, and hang.
        atexit.register(dist.destroy_process_group)
    return Group(dist.get_rank(), dist.get_world_size())
