"""Holds what the latest step sampled, and continues its rows in a step planned before the host knew that."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.collectives.base import Collectives
from workers.rank.readback import Readback
from workers.schedule.ahead import Outcome, rows_ahead
from workers.schedule.step import Ahead, Commit, Row

# What came of a row that had ended before its step: nothing.
_NOTHING: Outcome = (0, 0, True)


@dataclass(frozen=True, slots=True)
class Fed:
    """The rows of a step whose tokens the device takes from the step before.

    places: of each row its index in the step before, or a negative number for a row that was not in it. came: what the
    device sampled there, [rows of the step before, 3] int64, each row an `Outcome`.
    """

    rows: tuple[Row, ...]
    places: list[int]
    came: Tensor

    def tokens(self) -> tuple[Tensor, Tensor]:
        """On the device: each row's token id [rows] int64, and whether its sequence has ended [rows] bool."""
        device = self.came.device
        if self.places == list(range(len(self.came))):
            return self.came[:, 1], self.came[:, 2] > 0
        known = torch.tensor([(0, row.token_ids[0], 0) for row in self.rows]).to(device, non_blocking=True)
        pairs = [(into, place) for into, place in enumerate(self.places) if place >= 0]
        into, place = torch.tensor(pairs).to(device, non_blocking=True).unbind(1)
        known[into] = self.came[place]
        return known[:, 1], known[:, 2] > 0


class Latest:
    """The rows of the latest step that sampled, on every rank alike; rank 0 alone knows by itself what came of them."""

    def __init__(self, collectives: Collectives, device: torch.device) -> None:
        self._collectives = collectives
        self._device = device
        self._rows: tuple[Row, ...] = ()
        self._came: list[Outcome] = []
        self._over: frozenset[int] = frozenset()
        self._on_device: Tensor | None = None
        # What was fed to the step that is being launched: its places, and the copy that the host reads.
        self._feeding: tuple[list[int], Readback] | None = None
        self.feeds = False

    def took(self, rows: Sequence[Row], over: frozenset[int], came: Tensor | None, *, feeds: bool) -> None:
        """A step computes these rows. over: which of those that sample had ended before it.

        feeds: the device can feed the next step. came: what it feeds, [rows that sample, 3] int64, an `Outcome` each;
        None on ranks but 0.
        """
        self._rows = tuple(row for row in rows if row.sample)
        self._over = over
        self._on_device = came
        self.feeds = feeds

    def came_of(self, outcomes: list[Outcome]) -> None:
        """Take what came of the step's rows that sampled, without those that had ended before it. Rank 0 calls it."""
        each = iter(outcomes)
        self._came = [_NOTHING if at in self._over else next(each) for at in range(len(self._rows))]

    def go_on(self, ahead: Ahead, more: Sequence[Row]) -> tuple[tuple[Row, ...], tuple[Commit, ...]]:
        """The rows of a step that was planned ahead, and what stands of those that the step before verified.

        All ranks call it together: rank 0 tells the others what it sampled.
        """
        if self._collectives.size > 1:
            mine = self._came if self._collectives.rank == 0 else [_NOTHING] * len(self._rows)
            told = self._shared(torch.tensor(mine, dtype=torch.int64).to(self._device))
            self._came = [(gained, last, bool(over)) for gained, last, over in told.tolist()]
        rows = rows_ahead(self._rows, self._came, ahead, more)
        came = zip(self._rows, self._came, strict=True)
        commits = tuple(Commit(row.slot, gained) for row, (gained, _, _) in came if row.drafts)
        return tuple(rows), commits

    def rows_fed(self, ahead: Ahead, more: Sequence[Row]) -> tuple[tuple[Row, ...], list[int]]:
        """The rows of a step planned ahead, and their places, whatever came of the step before.

        A row whose sequence ended there is still among them. token_ids are (0,) where the device knows the token.
        """
        unknown: list[Outcome] = [(1, 0, at in self._over) for at in range(len(self._rows))]
        rows = rows_ahead(self._rows, unknown, ahead, more)
        ended = set(ahead.ended)
        places = [at for at, row in enumerate(self._rows) if at not in self._over and row.slot not in ended]
        return tuple(rows), places + [-1] * len(more)

    def feed(self, rows: tuple[Row, ...], places: list[int]) -> Fed:
        """Let the device take the tokens of `rows_fed` from the step before. All ranks call it together.

        `settle` is called next, once the step is launched.
        """
        came = self._on_device
        if came is None:
            came = torch.zeros(len(self._rows), 3, dtype=torch.int64, device=self._device)
        if self._collectives.size > 1:
            came = self._shared(came)
        self._feeding = places, Readback((came,))
        return Fed(rows, places, came)

    def settle(self) -> frozenset[int]:
        """Wait for the tokens of the last `feed`; returns which of its rows had ended before."""
        assert self._feeding is not None
        (places, read), self._feeding = self._feeding, None
        (came,) = read.lists()
        return frozenset(at for at, place in enumerate(places) if place >= 0 and came[place][2])

    def _shared(self, came: Tensor) -> Tensor:
        """Rank 0's tensor, on every rank."""
        return self._collectives.all_gather(came, 0)[: len(self._rows)]
