"""TiM4Rec: one set of weights, three ways to run it (`forward`, `prefill`, `step`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.config import ModelConfig
from model.gaps import UNKNOWN_TIME, GapGrid, GapTable, Knots, past_gaps, request_gaps
from model.groups import GroupedLayerNorm
from model.kernels import Kernels
from model.layers import FeedForward, TimeAwareSSD
from model.recommender import Recommender
from model.sequence_time import TimeEncoder, TimeMixer, time_differences
from model.state import Part, State, StateLayout


class Block(nn.Module):
    """A time-aware SSD and its feed-forward layer."""

    def __init__(self, config: ModelConfig, gap_rows: int) -> None:
        super().__init__()
        self.ssd = TimeAwareSSD(config, gap_rows)
        self.mixer = TimeMixer(config) if config.time == "sequence" else None
        self.ffn = FeedForward(config) if config.ffn else nn.Identity()


class _Gaps(NamedTuple):
    knots: Knots | None
    last_BL: Tensor


class TiM4Rec(Recommender):
    """Time-aware SSD recommender (arXiv 2409.16182).

    Items are int64 in 1..V, 0 pads; times int64 milliseconds, UNKNOWN_TIME where not known;
    batches are padded on the right.
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.item_embedding = nn.Embedding(config.n_items + 1, d, padding_idx=0)
        nn.init.normal_(self.item_embedding.weight, std=0.02)
        self.in_norm = GroupedLayerNorm(d, config.norm_eps, config.n_groups)
        self.dropout = nn.Dropout(config.dropout)
        self.gap_grid = GapGrid(config.gap_range_s)
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(config, self.gap_grid.rows) for _ in range(config.n_layers)
        )
        embeds_gap = config.time == "causal" and config.gap_embedding
        self.gap_embedding = GapTable(self.gap_grid.rows, d) if embeds_gap else None
        self.time_encoder = TimeEncoder(config) if config.time == "sequence" else None
        if config.uses_request_time:
            self.request_grid = GapGrid(config.request_range_s)
            self.request_table = GapTable(self.request_grid.rows, 2 * d)
            self.request_norm = GroupedLayerNorm(d, config.norm_eps, config.n_groups)

    @property
    def steppable(self) -> bool:
        """Whether a step costs the same at any history length."""
        return self.config.time != "sequence"

    @property
    def causal(self) -> bool:
        return self.steppable

    @property
    def window(self) -> int | None:
        return None if self.steppable else self.config.max_len

    def _embed(self, items: Tensor, knots: Knots | None) -> Tensor:
        x = self.item_embedding(items)
        if self.gap_embedding is not None and knots is not None:
            x = x + self.gap_embedding(knots)
        normed: Tensor = self.in_norm(self.dropout(x))
        return normed

    def use(self, kernels: Kernels | None) -> TiM4Rec:
        """Scans by these kernels, None: by the reference, as a `sequence` model does always. They
        are for float32."""
        if not self.steppable:
            return self
        for block in self.blocks:
            block.ssd.kernels = kernels
        return self

    @property
    def kernels(self) -> Kernels | None:
        """What it scans by; None: the reference."""
        return self.blocks[0].ssd.kernels

    def _gaps(
        self, times_BL: Tensor, last_B: Tensor, count_B: Tensor, sequence_BL: Tensor | None = None
    ) -> _Gaps:
        gap, kind, last = past_gaps(times_BL, last_B, count_B, sequence_BL)
        if self.config.time != "causal":
            return _Gaps(None, last)
        return _Gaps(self.gap_grid(gap, kind, self.item_embedding.weight.dtype), last)

    def _read_out(self, out: Tensor, request_times: Tensor | None, last_times: Tensor) -> Tensor:
        """The query (..., D) of a recommendation asked for at `request_times` (...)."""
        if not self.config.uses_request_time:
            return out
        if request_times is None:
            request_times = torch.full_like(last_times, UNKNOWN_TIME)
        knots = self.request_grid(*request_gaps(request_times, last_times), out.dtype)
        scale, shift = self.request_table(knots).chunk(2, -1)
        query: Tensor = self.request_norm(out * (1 + scale) + shift)
        return query

    # -- in parallel ---------------------------------------------------------------------

    def forward(
        self,
        items_BL: Tensor,
        times_BL: Tensor,
        request_times_BL: Tensor | None = None,
        state: State | None = None,
        *,
        sequence_BL: Tensor | None = None,
    ) -> Tensor:
        """The query at every position, (B, L, D): what is recommended after it.

        Args:
            request_times_BL: when the recommendation after each position is asked for (in
                training: the next interaction's time); None: unknown.
            state: before the first position, not changed; None: of users without a history.
            sequence_BL: which history a position is of, from 0 on, where rows hold several, one
                after the other; without a state.

        Raises:
            TypeError: for a `sequence` model, whose positions see later ones.
            ValueError: several histories in a row, and a state.
        """
        if not self.steppable:
            raise TypeError("a `sequence` model has no output per position: use window_output")
        if state is None:
            first = torch.zeros_like(items_BL[:, 0])
            unknown = torch.full_like(first, UNKNOWN_TIME)
            gaps = self._gaps(times_BL, unknown, first, sequence_BL)
        elif sequence_BL is None:
            gaps = self._gaps(times_BL, state["last_time"], state["count"])
        else:
            raise ValueError("a row of several histories has no state: give one history a row")
        x = self._embed(items_BL, gaps.knots)
        for i, block in enumerate(self.blocks):
            h, tail = (None, None) if state is None else (state["h"][:, i], state["conv"][:, i])
            x = block.ffn(block.ssd(x, gaps.knots, None, h, tail, sequence_BL=sequence_BL)[0])
        return self._read_out(x, request_times_BL, gaps.last_BL)

    def window_output(self, items_BL: Tensor, lengths_B: Tensor, timestamps_BL: Tensor) -> Tensor:
        """The last real position's output, (B, D), of windows padded on the right with zeros.

        This is the official code's forward pass. A `sequence` model needs L = max_len.

        Args:
            lengths_B: int64, each from 1 to L.
            timestamps_BL: epoch SECONDS (integers or floats), as in the official code.
        """
        if self.steppable:
            times_ms = (timestamps_BL.double() * 1000).round().long()
            none_yet = self.new_state(len(items_BL), items_BL.device)
            return self.prefill(items_BL, times_ms, lengths_B, none_yet)["out"]
        factors = self._window_factors(timestamps_BL)
        # All else is causal, so padding is left out of it: windows of similar length go together.
        groups = _of_similar_length(lengths_B)
        outputs = []
        for rows in groups:
            lengths = lengths_B[rows]
            width = int(lengths.max())
            x = self._embed(items_BL[rows, :width], None)
            for i, (block, g_BLH) in enumerate(zip(self.blocks, factors, strict=True)):
                g, last = g_BLH[rows, :width], i == len(self.blocks) - 1
                x = block.ffn(block.ssd(x, None, g, lengths_B=lengths, ends_only=last)[0])
            outputs.append(x)
        return torch.cat(outputs)[torch.cat(groups).argsort()]

    def _window_factors(self, timestamps_BL: Tensor) -> list[Tensor]:
        """Each layer's factor of the step size, (B, L, H), by the paper's time path."""
        assert self.time_encoder is not None
        d = self.time_encoder(time_differences(timestamps_BL).to(self._dtype))
        d = d[:, None].expand(-1, self.config.n_heads, -1)  # the layers mix each head's own
        factors = []
        for block in self.blocks:
            assert block.mixer is not None
            g, d = block.mixer(d)
            factors.append(g)
        return factors

    @property
    def _dtype(self) -> torch.dtype:
        return self.item_embedding.weight.dtype

    # -- with a state --------------------------------------------------------------------

    @property
    def state_layout(self) -> StateLayout:
        """What one user's state consists of.

        For a model that can be stepped: per layer h and the convolution's last inputs, then
        the last output, the last known time and the number of interactions. For a `sequence`
        model: its window.
        """
        c = self.config
        ends = (
            Part("last_time", (), torch.int64, UNKNOWN_TIME),
            Part("count", (), torch.int64),
        )
        if not self.steppable:
            items = Part("items", (c.max_len,), torch.int64)
            return StateLayout((items, Part("times", (c.max_len,), torch.int64), *ends))
        f = torch.float32
        return StateLayout(
            (
                Part("h", (c.n_layers, c.n_heads, c.head_dim, c.d_state), f),
                Part("conv", (c.n_layers, c.d_conv - 1, c.d_xbc), f),
                Part("out", (c.d_model,), f),
                *ends,
            )
        )

    def new_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """States of `batch` users without a history, in the model's precision."""
        state = self.state_layout.new(batch, device or self.device)
        return state.double() if self._dtype == torch.float64 else state

    def prefill(self, items_BL: Tensor, times_BL: Tensor, lengths_B: Tensor, state: State) -> State:
        """The states after each row's first `lengths_B` interactions, in one parallel pass.

        Args:
            lengths_B: int64, each from 0 (the row's state stays) to L.
            state: of the same B users; it is not changed.
        """
        if not self.steppable:
            return self._slide(items_BL, times_BL, lengths_B, state)
        gaps = self._gaps(times_BL, state["last_time"], state["count"])
        x = self._embed(items_BL, gaps.knots)
        hs, tails = [], []
        for i, block in enumerate(self.blocks):
            x, h, tail = block.ssd(
                x,
                gaps.knots,
                None,
                state["h"][:, i],
                state["conv"][:, i],
                lengths_B,
                ends_only=i == len(self.blocks) - 1,
            )
            x = block.ffn(x)
            hs.append(h)
            tails.append(tail)
        last = (lengths_B - 1).clamp(min=0)
        row = torch.arange(len(x), device=x.device)
        some = lengths_B > 0
        return State(
            {
                "h": torch.stack(hs, 1),
                "conv": torch.stack(tails, 1),
                "out": torch.where(some[:, None], x, state["out"]),
                "last_time": torch.where(some, gaps.last_BL[row, last], state["last_time"]),
                "count": state["count"] + lengths_B,
            }
        )

    def step(self, items_B: Tensor, times_B: Tensor, state: State) -> State:
        """The states after one more interaction each: (B) items, (B) times."""
        if not self.steppable:
            ones = torch.ones_like(items_B)
            return self._slide(items_B[:, None], times_B[:, None], ones, state)
        gaps = self._gaps(times_B[:, None], state["last_time"], state["count"])
        knots = None if gaps.knots is None else Knots(*(part[:, 0] for part in gaps.knots))
        x = self._embed(items_B, knots)
        hs, tails = [], []
        for i, block in enumerate(self.blocks):
            x, h, tail = block.ssd.step(x, knots, state["h"][:, i], state["conv"][:, i])
            x = block.ffn(x)
            hs.append(h)
            tails.append(tail)
        return State(
            {
                "h": torch.stack(hs, 1),
                "conv": torch.stack(tails, 1),
                "out": x,
                "last_time": gaps.last_BL[:, 0],
                "count": state["count"] + 1,
            }
        )

    def query(self, state: State, request_times_B: Tensor | None = None) -> Tensor:
        """The query (B, D) of users whose history is not empty, asked for at those times."""
        if self.steppable:
            return self._read_out(state["out"], request_times_B, state["last_time"])
        return self.window_output(
            state["items"],
            state["count"].clamp(1, self.config.max_len),
            state["times"].double() / 1000,  # float32 would keep them to 128 s only
        )

    def _slide(self, items_BL: Tensor, times_BL: Tensor, lengths_B: Tensor, state: State) -> State:
        """Moves each row's window on by its first `lengths_B` interactions."""
        width = self.config.max_len
        _, _, last_BL = past_gaps(times_BL, state["last_time"], state["count"])
        known = torch.where(last_BL == UNKNOWN_TIME, 0, last_BL)  # the official padding's time
        held = state["count"].clamp(max=width)
        total = held + lengths_B
        # Slot s of the new window is place s + total - min(total, width) of old then new.
        place = torch.arange(width, device=total.device) + (total - total.clamp(max=width))[:, None]
        old = place < held[:, None]
        parts = {}
        for name, new in (("items", items_BL), ("times", known)):
            from_old = state[name].gather(1, place.clamp(max=width - 1))
            fresh = (place - held[:, None]).clamp(0, new.shape[1] - 1)
            slid = torch.where(old, from_old, new.gather(1, fresh))
            parts[name] = torch.where(place < total[:, None], slid, 0)
        row = torch.arange(len(total), device=total.device)
        last = last_BL[row, (lengths_B - 1).clamp(min=0)]
        parts["last_time"] = torch.where(lengths_B > 0, last, state["last_time"])
        parts["count"] = state["count"] + lengths_B
        return State(parts)


def _of_similar_length(lengths_B: Tensor) -> list[Tensor]:
    """The rows of lengths 1, 2, 3..4, 5..8 and so on, where there are any."""
    class_B = torch.frexp((lengths_B - 1).double())[1]
    found = (torch.nonzero(class_B == c)[:, 0] for c in range(int(class_B.max()) + 1))
    return [rows for rows in found if len(rows)]


class _NothingComputed(TorchFunctionMode):
    """What draws or computes weights leaves them as they are: for those without memory torch would
    load its compiler first, 150 MB in a second."""

    same_shape = frozenset({"uniform_", "exp", "expm1", "log", "neg", "add"})

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        drawn = getattr(func, "__module__", None) == "torch.nn.init"
        if drawn or getattr(func, "__name__", None) in self.same_shape:
            return args[0] if args else None
        return func(*args, **(kwargs or {}))


def outline(config: ModelConfig) -> TiM4Rec:
    """A model that has the names and shapes of its weights, and no memory for them."""
    with torch.device("meta"), _NothingComputed():
        return TiM4Rec(config)
