"""`ling plan`."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.table import Table

from cluster.remote import RemoteError, fetch_status
from cluster.terminal import console_for_tables
from planner.cards import find_card
from planner.compare import Compared, compare
from planner.errors import PlanError
from planner.memory import Layout
from planner.model import FORMATS, RELEASED, Format, Model, load_model
from planner.plan import Plan, make_plan
from planner.question import Question
from planner.render import render
from planner.traffic import Traffic
from workers.sizes import PREFILL_STEP_TOKENS

DEFAULT_PROMPT = 8192


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What `--json` prints. check: the running cluster's figures beside the plan's, with `--check`."""

    plan: Plan
    check: tuple[Compared, ...] | None = None


def _worker_option(text: str, **limits: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="A worker", show_default=False, **limits)


def _traffic_option(text: str, **limits: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="Traffic", show_default=False, **limits)


def plan_command(
    gpu: Annotated[str, _worker_option("The card, e.g. h200-141gb; a wrong one lists all.")],
    model: Annotated[str, typer.Option(help="Checkpoint folder (its config.json is read), or the release.")] = RELEASED,
    gpus_per_worker: Annotated[int, _worker_option("Tensor-parallel ranks of a worker. Default 1.", min=1)] = 1,
    dtype: Annotated[
        Format | None,
        _worker_option(f"The weights' format: {', '.join(FORMATS)}. Default: the checkpoint's.", metavar="<format>"),
    ] = None,
    context: Annotated[int | None, _worker_option("Longest session. Default: the checkpoint's.", min=2)] = None,
    mean_length: Annotated[
        int | None, _worker_option("Tokens a session holds in the mean. Default: --context.", min=1)
    ] = None,
    sessions: Annotated[
        int | None, _worker_option("Sessions at once, so state slots. Default: as many as fit.", min=1)
    ] = None,
    step_tokens: Annotated[
        int, _worker_option(f"Token budget of a step. Default {PREFILL_STEP_TOKENS}, a prefill worker's.", min=1)
    ] = PREFILL_STEP_TOKENS,
    page_size: Annotated[int, _worker_option("Tokens a latent page. Default 64.", min=1, max=4096)] = 64,
    mtp: Annotated[
        bool | None, _worker_option("Load the MTP layer, to speculate. Default: where the release has it.")
    ] = None,
    kept_states: Annotated[
        int | None,
        _worker_option(
            "States that the prefix cache keeps on the device (cache.device_states; 0: cache.mode off). Default: as "
            "many as slots, as workers do.",
            min=0,
        ),
    ] = None,
    host_gb: Annotated[
        float, _worker_option("GB of a worker's host memory for kept snapshots (cache.host_bytes). Default 0.", min=0)
    ] = 0.0,
    network: Annotated[
        float, _worker_option("GB/s each card has towards other workers. Default 50, a 400 Gb/s port.")
    ] = 50.0,
    requests_per_s: Annotated[float | None, _traffic_option("Requests a second; sizes both pools.")] = None,
    prompt_tokens: Annotated[
        int | None, _traffic_option("Of the mean prompt. Default 8192, or --context.", min=1)
    ] = None,
    output_tokens: Annotated[int | None, _traffic_option("Of the mean answer.", min=1)] = None,
    hit_rate: Annotated[
        float | None, _traffic_option("Share of the prompt that need not be computed (docs/CACHE.md). Default 0.")
    ] = None,
    check: Annotated[
        str | None, typer.Option(help="Compare with the cluster at this URL; exit 1 where it differs.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan memory, sessions, speed and pools for a model on a card, from its config alone."""
    try:
        if not math.isfinite(host_gb):
            raise PlanError(f"--host-gb: must be a number of GB, got {host_gb}")
        found = load_model(model, dtype)
        layout = _layout(found, gpus_per_worker, context, mean_length, sessions, step_tokens, page_size, mtp)
        layout = replace(layout, kept_states=kept_states, host_bytes=int(host_gb * 1e9))
        question = Question(
            model=found,
            card=find_card(gpu),
            layout=layout,
            network=network * 1e9,
            prompt=prompt_tokens or min(DEFAULT_PROMPT, layout.context),
            traffic=_traffic(requests_per_s, prompt_tokens, output_tokens, hit_rate),
        )
        plan = make_plan(question)
        compared = compare(plan, fetch_status(check)) if check else None
    except PlanError as error:
        raise typer.BadParameter(str(error)) from None
    except RemoteError as error:
        raise typer.BadParameter(f"--check: {error}") from None
    if json:
        typer.echo(TypeAdapter(PlanReport).dump_json(PlanReport(plan, compared), indent=2).decode())
    else:
        _print(plan, compared)
    if compared and not all(figure.same for figure in compared):
        raise typer.Exit(1)


def _layout(
    model: Model,
    tp: int,
    context: int | None,
    mean_length: int | None,
    sessions: int | None,
    step_tokens: int,
    page_size: int,
    mtp: bool | None,
) -> Layout:
    longest = context or model.config.max_model_len
    loaded = model.has_mtp if mtp is None else mtp
    return Layout(tp, longest, mean_length or longest, sessions, step_tokens, page_size, loaded)


def _traffic(
    requests_per_s: float | None, prompt: int | None, output: int | None, hit_rate: float | None
) -> Traffic | None:
    """The traffic that the flags describe; PlanError if flags are missing."""
    if requests_per_s is None:
        for flag, value in (("--output-tokens", output), ("--hit-rate", hit_rate)):
            if value is not None:
                raise PlanError(f"{flag}: says nothing without --requests-per-s")
        return None
    if prompt is None or output is None:
        raise PlanError("--requests-per-s: needs --prompt-tokens and --output-tokens")
    return Traffic(requests_per_s, prompt, output, hit_rate or 0.0)


def _print(plan: Plan, compared: tuple[Compared, ...] | None) -> None:
    console = console_for_tables()
    console.print(render(plan))
    if compared is None:
        return
    table = Table("worker", "figure", "planned", "running", "", box=None, header_style="dim", padding=(0, 2))
    for figure in compared:
        mark = "" if figure.same else f"[red]{(figure.running - figure.planned) / max(1, figure.planned):+.0%}[/]"
        table.add_row(figure.worker, figure.figure, f"{figure.planned:,}", f"{figure.running:,}", mark)
    console.print()
    console.print(table)
