"""Holds what the latest step sampled, and continues its rows in a step planned before the host knew that."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from msgspec import structs
from torch import Tensor

from workers.collectives.base import Collectives
from workers.rank.graphs import Places
from workers.rank.readback import Readback
from workers.schedule.ahead import Outcome, rows_ahead
from workers.schedule.step import Ahead, Commit, Row

# The outcome of a row whose sequence had ended before the step.
NOTHING: Outcome = (0, 0, True)
# The token ids of a row whose token only the device knows.
_UNKNOWN = (-1,)


@dataclass(frozen=True, slots=True)
class Fed:
    """A step whose rows continue sequences whose latest tokens the device has sampled and the host has not read.

    rows: its rows; their starts and token ids mean nothing where the device alone knows them. came: of each row of the
    step before an `Outcome`, [rows before, 3] int64 on the device. tokens: each row's token id [rows] int64. gained:
    tokens it gained in the step before [rows] int64, 0 where it was not in it.
    """

    rows: tuple[Row, ...]
    came: Tensor
    tokens: Tensor
    gained: Tensor
    places: Places


class Latest:
    """The rows of the latest step that sampled, the same on every rank. Only rank 0 samples; it shares the outcomes."""

    def __init__(self, collectives: Collectives, device: torch.device) -> None:
        self._collectives = collectives
        self._device = device
        self._rows: tuple[Row, ...] = ()
        self._came: list[Outcome] = []
        self._over: frozenset[int] = frozenset()
        self._on_device: Tensor | None = None
        # Of the step that is being launched: each row's index in the step before, or -1, and the copy of the outcomes.
        self._places: list[int] = []
        self._feeding: Readback | None = None
        self.feeds = False

    def took(self, rows: Sequence[Row], over: frozenset[int], came: Tensor | None, *, feeds: bool) -> None:
        """Record the rows of a step. over: indices of its sampling rows whose sequences had ended before it.

        feeds: whether the device can feed the next step. came: the `Outcome` of each sampling row, [rows, 3] int64 on
        the device; None on ranks other than 0.
        """
        self._rows = tuple(row for row in rows if row.sample)
        self._over = over
        self._on_device = came
        self.feeds = feeds

    def came_of(self, outcomes: list[Outcome]) -> None:
        """Take the outcomes of the step's sampling rows, without those whose sequences had ended. Rank 0 calls it."""
        each = iter(outcomes)
        self._came = [NOTHING if at in self._over else next(each) for at in range(len(self._rows))]

    def go_on(self, ahead: Ahead, more: Sequence[Row]) -> tuple[tuple[Row, ...], tuple[Commit, ...]]:
        """The rows of a step that was planned ahead, and the commits of the rows that the step before verified.

        All ranks call it together: rank 0 tells the others what it sampled.
        """
        if self._collectives.size > 1:
            mine = self._came if self._collectives.rank == 0 else [NOTHING] * len(self._rows)
            told = self._shared(torch.tensor(mine, dtype=torch.int64).to(self._device))
            self._came = [(gained, last, bool(over)) for gained, last, over in told.tolist()]
        rows = rows_ahead(self._rows, self._came, ahead, more)
        came = zip(self._rows, self._came, strict=True)
        commits = tuple(Commit(row.slot, gained) for row, (gained, _, _) in came if row.drafts)
        return tuple(rows), commits

    def rows_fed(self, ahead: Ahead, more: Sequence[Row]) -> tuple[Row, ...]:
        """The rows of a step planned ahead, made without the results of the step before.

        They include rows whose sequences ended there. Only the rows of `more` have valid starts and token ids.
        """
        unknown: list[Outcome] = [(1, *_UNKNOWN, at in self._over) for at in range(len(self._rows))]
        return tuple(rows_ahead(self._rows, unknown, ahead, more))

    def feed(self, rows: tuple[Row, ...]) -> Fed:
        """Make the device take the tokens of `rows_fed` from the step before. All ranks call it together.

        Call `settle` once the step is launched.
        """
        came = self._on_device
        if came is None:
            came = torch.zeros(len(self._rows), 3, dtype=torch.int64, device=self._device)
        if self._collectives.size > 1:
            came = self._shared(came)
        before = {row.slot: at for at, row in enumerate(self._rows) if at not in self._over}
        # A row of `more` may have the slot of a sequence that ended in the step before.
        self._places = [before.get(row.slot, -1) if row.token_ids == _UNKNOWN else -1 for row in rows]
        self._feeding = Readback((came,))
        known = [
            (self._rows[at].start, 0) if at >= 0 else (row.start, *row.token_ids)
            for at, row in zip(self._places, rows, strict=True)
        ]
        starts, tokens = self._sent(known).unbind(1)
        here = came
        if self._places != list(range(len(came))):
            # The row of zeros at the end is for rows that were not in the step before.
            at = self._sent([place if place >= 0 else len(came) for place in self._places])
            here = torch.cat((came, came.new_zeros(1, 3)))[at]
        gained, last, over = here.unbind(1)
        return Fed(rows, came, tokens + last, gained, Places(starts + gained, over > 0))

    @property
    def before(self) -> list[Row]:
        """The row in the step before of each row that is being fed."""
        return [self._rows[at] for at in self._places]

    def settle(self, rows: tuple[Row, ...]) -> tuple[tuple[Row, ...], frozenset[int]]:
        """Wait for the tokens of the last `feed`; returns its rows with their starts, and which of them had ended."""
        assert self._feeding is not None
        read, self._feeding = self._feeding, None
        (came,) = read.lists()
        settled = tuple(
            structs.replace(row, start=self._rows[at].start + came[at][0]) if at >= 0 else row
            for at, row in zip(self._places, rows, strict=True)
        )
        return settled, frozenset(n for n, at in enumerate(self._places) if at >= 0 and came[at][2])

    def _sent(self, values: list[int] | list[tuple[int, ...]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device, non_blocking=True)

    def _shared(self, came: Tensor) -> Tensor:
        """Rank 0's tensor, on every rank."""
        return self._collectives.all_gather(came, 0)[: len(self._rows)]
