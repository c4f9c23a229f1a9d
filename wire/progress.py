"""Progress of a worker's start: reported by ranks and leaders, shown by routers and the terminal."""

from dataclasses import dataclass

from wire.protocol import Role


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of one stage at one moment.

    stage: its name, e.g. "fetching". done, total: bytes. files_done, files: whole files, if they are counted. rate:
    bytes a second since the stage began; 0 while nothing has moved.
    """

    stage: str
    done: int = 0
    total: int = 0
    files_done: int = 0
    files: int = 0
    rate: float = 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at this rate; None while it is unknown."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None

    def __str__(self) -> str:
        said = []
        if self.files:
            said.append(f"{self.files_done} of {self.files} files")
        if self.total:
            unit, name = (1e9, "GB") if self.total >= 1e9 else (1e6, "MB")
            said.append(f"{self.done / unit:.2f} of {self.total / unit:.2f} {name}")
        if self.rate > 0:
            said.append(f"{self.rate / 1e6:,.0f} MB/s")
        if self.left_s:
            said.append(f"{self.left_s:.0f} s left")
        return f"{self.stage}: {', '.join(said)}" if said else self.stage


@dataclass(frozen=True, slots=True)
class Starting:
    """A worker that does not serve yet. still_s: seconds since its progress last changed."""

    worker_id: str
    role: Role
    node: str
    progress: Progress
    still_s: float
