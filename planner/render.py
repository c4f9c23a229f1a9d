"""Shows a plan as tables in the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.plan import Plan
from planner.tensors import Kind
from planner.words import gib
from workers.memory import GIB


def render(plan: Plan) -> Group:
    """The plan as a headline, tables and remarks."""
    tables = [_model(plan), _memory(plan)]
    if plan.decode:
        tables += [_capacity(plan), _decode(plan), _prompt(plan)]
    if plan.fleet:
        tables.append(_fleet(plan))
    parts: list[RenderableType] = [_headline(plan), Text()]
    for title, table in tables:
        parts += [Text(title, "bold"), table, Text()]
    return Group(*parts, *(Text(f"- {sentence}") for sentence in plan.words))


def _headline(plan: Plan) -> Text:
    verdict = ("fits", "bold green") if plan.fits else ("does not fit", "bold red")
    cards = f"{plan.layout.tp} x {plan.card.name}" if plan.layout.tp > 1 else plan.card.name
    return Text.assemble((plan.model, "bold"), f" in {plan.dtype}, a worker of {cards}: ", verdict)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _model(plan: Plan) -> tuple[str, Table]:
    size = plan.size
    table = _table("kind", "parameters", "GiB", "GiB a card")
    for kind, count in size.parameters.items():
        whole, share = size.weights.get(kind), size.weights_per_card.get(kind)
        stored = "not in it" if whole is None else f"{whole / GIB:,.2f}"
        table.add_row(kind, f"{count:,}", stored, "not loaded" if share is None else f"{share / GIB:,.2f}")
    totals = (_without_mtp(each) / GIB for each in (size.weights, size.weights_per_card))
    table.add_row("all but MTP", f"{size.main_parameters:,}", *(f"{total:,.2f}" for total in totals), style="bold")
    table.add_row("active per token", f"{size.active_parameters:,}", "", "")
    table.add_row("files of the release", "", f"{size.checkpoint_bytes / GIB:,.2f}", "")
    return "Model", table


def _without_mtp(weights: dict[Kind, int]) -> int:
    return sum(size for kind, size in weights.items() if kind != "MTP")


def _memory(plan: Plan) -> tuple[str, Table]:
    memory = plan.memory
    table = _table("kind", "GiB", "of the card")
    slots, pages = f"{plan.capacity.slots:,} slots", f"{plan.capacity.pages:,} pages"
    rows = (
        ("weights", memory.weights),
        (f"states ({slots})", memory.states),
        *([(f"kept states ({plan.capacity.kept_states:,})", memory.kept)] if memory.kept else []),
        (f"latents ({pages} of {plan.capacity.page_size} tokens)", memory.latents),
        (f"logits ({slots})", memory.logits),
        (f"activations ({plan.layout.step_tokens:,} tokens a step)", memory.activations),
        ("CUDA graphs", memory.graphs),
        ("CUDA context, collectives", memory.context),
        ("allocator margin", memory.margin),
        ("missing" if memory.unused < 0 else "unused", abs(memory.unused)),
    )
    for name, size in rows:
        table.add_row(name, f"{size / GIB:,.2f}", f"{size / memory.card:.1%}", style="red" if name == "missing" else "")
    table.add_row("card", f"{memory.card / GIB:,.2f}", "", style="bold")
    return f"Memory of one {plan.card.name}", table


def _capacity(plan: Plan) -> tuple[str, Table]:
    held = plan.capacity
    table = _table("by", "sessions", "")
    beside = ", and as much kept" if plan.layout.kept_states is None else ""
    states = f"{gib(plan.size.state_bytes / plan.layout.tp)} of state a card{beside}"
    table.add_row("states alone", f"{held.by_slots:,}", states)
    table.add_row(f"pages beside {held.slots:,} slots", f"{held.by_pages:,}", f"{plan.size.latent_bytes:,} B a token")
    table.add_row("best split of memory", f"{held.most:,}", "")
    table.add_row("held", f"{held.fits:,}", f"{held.binds} bind", style="bold")
    if held.kept_states:
        table.add_row("kept between turns on the device", f"{held.kept_states:,}", "as far as pages are free")
    if plan.layout.host_bytes:
        table.add_row("kept in host memory", f"{held.kept_on_host:,}", f"{gib(plan.layout.host_bytes)} a worker")
    return f"Sessions of {plan.layout.mean_length:,} tokens in the mean", table


def _decode(plan: Plan) -> tuple[str, Table]:
    title = f"Decode at {plan.layout.mean_length:,} tokens of context: limits"
    table = _table("batch", "weights", "states", "latents", "memory", "compute", "exchange", "step", "tok/s",
                   "tok/s each", "with drafts", "bound by")  # fmt: skip
    for row in plan.decode:
        table.add_row(
            f"{row.batch:,}",
            *(f"{size / 1e9:,.2f} GB" for size in (row.weights_bytes, row.states_bytes, row.latents_bytes)),
            *(_ms(seconds) for seconds in (row.memory_s, row.compute_s, row.exchange_s, row.step_s)),
            f"{row.tokens_per_s:,.0f}",
            f"{row.user_tokens_per_s:,.0f}",
            "" if row.speculated is None else f"{row.speculated.gain:.2f}x",
            row.bound,
        )
    return title, table


def _prompt(plan: Plan) -> tuple[str, Table]:
    prompt, moved = plan.prefill, plan.handoff
    assert prompt is not None
    assert moved is not None
    table = _table("", "", "")
    table.show_header = False
    table.add_row("prefill", _ms(prompt.seconds), f"{prompt.tokens_per_s:,.0f} tok/s a worker, {prompt.bound} bound")
    sent = f"{gib(moved.snapshot_bytes)}, {gib(moved.card_bytes)} a card at {moved.network / 1e9:g} GB/s"
    table.add_row("hand-off", _ms(moved.seconds), f"{sent}: {moved.seconds / prompt.seconds:.1%} of the prefill")
    table.add_row("left after the last chunk", _ms(moved.exposed_s), "")
    return f"A prompt of {moved.tokens:,} tokens: limits", table


def _fleet(plan: Plan) -> tuple[str, Table]:
    fleet = plan.fleet
    assert fleet is not None
    traffic = fleet.traffic
    title = (
        f"{traffic.requests_per_s:g} requests/s of {traffic.prompt_tokens:,} + {traffic.output_tokens:,} tokens, "
        f"{traffic.hit_rate:.0%} of the prompt kept"
    )
    table = _table("", "prefill", "decode")
    table.add_row("workers busy", f"{fleet.prefill_need:.2f}", f"{fleet.decode_need:.2f}")
    table.add_row("workers", f"{fleet.prefill_workers:,}", f"{fleet.decode_workers:,}", style="bold")
    cards = [f"{count * plan.layout.tp:,}" for count in (fleet.prefill_workers, fleet.decode_workers)]
    table.add_row("cards", *cards)
    table.add_row("P:D", f"{fleet.ratio:.2f}", "1")
    table.add_row("idle TTFT, loaded step", _ms(fleet.ttft_s), _ms(fleet.step.seconds))
    table.add_row("hand-offs' share of the network", f"{fleet.network_share:.1%}", "")
    return title, table


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"
