"""The latest figures of each router. Pure."""

from collections.abc import Mapping

# A router reports every two seconds.
EXPIRY_S = 10.0
Figures = Mapping[str, float]


class RouterFigures:
    """The figures of routers that reported lately. Time is passed in."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[Figures, float]] = {}

    def tell(self, router: str, figures: Figures, now: float) -> dict[str, Figures]:
        """Record a router's figures; returns those of all other routers."""
        self._of[router] = (figures, now + EXPIRY_S)
        self._of = {name: kept for name, kept in self._of.items() if kept[1] > now}
        return {name: theirs for name, (theirs, _) in self._of.items() if name != router}
