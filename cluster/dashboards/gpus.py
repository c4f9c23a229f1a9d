"""The board of NVIDIA's DCGM exporter.

Its series have the exporter's labels, so the board has no variables except the data source.
"""

from cluster.dashboards.board import Board, Panel, Query, Row, Unit

_BY = "by (Hostname, gpu)"
_LEGEND = "{{Hostname}} GPU {{gpu}}"


def _each(title: str, unit: Unit, text: str, expr: str, most: float | None = None) -> Panel:
    return Panel(title, unit, text, (Query(expr, _LEGEND),), width=12, most=most)


GPUS = Board(
    "ling-gpus",
    "Ling / GPUs",
    "The cards as NVIDIA's DCGM exporter sees them: use, memory, heat, faults.",
    (
        Row(
            "Now",
            (
                Panel(
                    "Faults", "short", "Cards whose last XID error is not 0. Normal: none.",
                    (Query("count(DCGM_FI_DEV_XID_ERRORS > 0) or vector(0)", ""),),
                    kind="stat", width=8, height=4, warn=1, bad=2,
                ),
                Panel(
                    "Hottest", "celsius", "Cards slow down from about 87 °C on.",
                    (Query("max(DCGM_FI_DEV_GPU_TEMP)", ""),), kind="stat", width=8, height=4, warn=80, bad=87,
                ),
                Panel(
                    "Idle cards", "short", "Under 1 % of use.",
                    (Query("count(DCGM_FI_DEV_GPU_UTIL < 1) or vector(0)", ""),), kind="stat", width=8, height=4,
                ),
            ),
        ),
        Row(
            "Each card",
            (
                _each("Use", "percentunit", "Time with a kernel.", f"avg {_BY} (DCGM_FI_DEV_GPU_UTIL) / 100", 1),
                _each(
                    "Memory in use", "percentunit", "Weights and pages are taken at the start; it hardly moves.",
                    f"avg {_BY} (DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE))", 1,
                ),
                _each("Temperature", "celsius", "Of the chip.", f"max {_BY} (DCGM_FI_DEV_GPU_TEMP)"),
                _each("Power", "watt", "Near the limit, clocks fall.", f"max {_BY} (DCGM_FI_DEV_POWER_USAGE)"),
                _each(
                    "XID errors", "none", "The last one's number; NVIDIA lists them.",
                    f"max {_BY} (DCGM_FI_DEV_XID_ERRORS)",
                ),
                _each(
                    "Clock of the cores", "none", "MHz; lower than usual under load: heat or power.",
                    f"avg {_BY} (DCGM_FI_DEV_SM_CLOCK)",
                ),
            ),
        ),
    ),
    scope="",
)  # fmt: skip
