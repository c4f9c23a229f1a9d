"""The GPUs board, from the figures of NVIDIA's DCGM exporter.

The series have the exporter's own labels, so the board has no variables except the data source.
"""

from cluster.dashboards.board import Board, Panel, Query, Row, Unit

_BY = "by (Hostname, gpu)"
_LEGEND = "{{Hostname}} GPU {{gpu}}"


def _each(title: str, unit: Unit, text: str, expr: str, most: float | None = None) -> Panel:
    return Panel(title, unit, text, (Query(expr, _LEGEND),), width=12, most=most)


GPUS = Board(
    "ling-gpus",
    "Ling / GPUs",
    "Utilization, memory, temperature, power and errors of each GPU, as NVIDIA's DCGM exporter reports them.",
    (
        Row(
            "Now",
            (
                Panel(
                    "GPUs with an XID error", "short", "GPUs whose last XID error is not 0. Normal: none.",
                    (Query("count(DCGM_FI_DEV_XID_ERRORS > 0) or vector(0)", ""),),
                    kind="stat", width=8, height=4, warn=1, bad=2,
                ),
                Panel(
                    "Highest temperature", "celsius",
                    "Temperature of the hottest GPU. GPUs slow down from about 87 °C on.",
                    (Query("max(DCGM_FI_DEV_GPU_TEMP)", ""),), kind="stat", width=8, height=4, warn=80, bad=87,
                ),
                Panel(
                    "Idle GPUs", "short", "GPUs with a utilization below 1 %.",
                    (Query("count(DCGM_FI_DEV_GPU_UTIL < 1) or vector(0)", ""),), kind="stat", width=8, height=4,
                ),
            ),
        ),
        Row(
            "Each GPU",
            (
                _each(
                    "Utilization", "percentunit", "Share of time in which the GPU runs a kernel.",
                    f"avg {_BY} (DCGM_FI_DEV_GPU_UTIL) / 100", 1,
                ),
                _each(
                    "Memory in use", "percentunit",
                    "Share of device memory in use. Workers allocate weights and pages at their start, so it hardly "
                    "changes.",
                    f"avg {_BY} (DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE))", 1,
                ),
                _each("Temperature", "celsius", "Temperature of the chip.", f"max {_BY} (DCGM_FI_DEV_GPU_TEMP)"),
                _each(
                    "Power", "watt", "Power that the GPU draws. Near its limit the GPU lowers its clock.",
                    f"max {_BY} (DCGM_FI_DEV_POWER_USAGE)",
                ),
                _each(
                    "XID errors", "none", "Number of the last XID error; NVIDIA's documentation lists their meanings.",
                    f"max {_BY} (DCGM_FI_DEV_XID_ERRORS)",
                ),
                _each(
                    "SM clock", "none",
                    "Clock of the multiprocessors in MHz. If it is low under load, heat or power limits it.",
                    f"avg {_BY} (DCGM_FI_DEV_SM_CLOCK)",
                ),
            ),
        ),
    ),
    scope="",
)  # fmt: skip
