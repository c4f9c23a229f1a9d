"""What the latest step sampled: how its rows go on when the next step was planned ahead."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.collectives.base import Collectives
from workers.schedule.ahead import Outcome, rows_ahead
from workers.schedule.step import Ahead, Commit, Row


class Latest:
    """The rows of the latest step that sampled, on every rank alike; what came of them only rank 0 knows by itself."""

    def __init__(self, collectives: Collectives, device: torch.device) -> None:
        self._collectives = collectives
        self._device = device
        self._rows: list[Row] = []
        self._came: list[Outcome] = []

    def took(self, rows: Sequence[Row], came: list[Outcome]) -> None:
        """A step has sampled. came: of each row with `sample`; on ranks but 0 anything."""
        self._rows = [row for row in rows if row.sample]
        self._came = came

    def go_on(self, ahead: Ahead, more: Sequence[Row]) -> tuple[tuple[Row, ...], tuple[Commit, ...]]:
        """The rows of a step that was planned ahead, and what stands of those that the step before verified.

        All ranks call it together: rank 0 tells the others what it sampled.
        """
        if self._collectives.size > 1:
            self._share()
        rows = rows_ahead(self._rows, self._came, ahead, more)
        came = zip(self._rows, self._came, strict=True)
        commits = tuple(Commit(row.slot, gained) for row, (gained, _, _) in came if row.drafts)
        return tuple(rows), commits

    def _share(self) -> None:
        count = len(self._rows)
        if self._collectives.rank == 0:
            mine = torch.tensor(self._came, dtype=torch.int64)
        else:
            mine = torch.zeros(count, 3, dtype=torch.int64)
        told: Tensor = self._collectives.all_gather(mine.to(self._device), 0)
        self._came = [(gained, last, bool(over)) for gained, last, over in told[:count].tolist()]
