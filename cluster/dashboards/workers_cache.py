"""The board of workers: what each does, how full it is, and where its steps' time goes."""

from cluster.dashboards.board import Board, Panel, Query, Row
from cluster.dashboards.promql import quantile, rate, shares, total, used
from wire.metrics import table as t

_STEPS = rate(t.STEP_SECONDS, "worker", suffix="_count")

WORKERS = Board(
    "ling-workers",
    "Ling / Workers & cache",
    "What each worker does, how full it is, and where its steps' time goes.",
    (
        Row(
            "Load",
            (
                Panel("Running", "short", "In its steps.", (Query(total(t.RUNNING, "worker"), "{{worker}}"),)),
                Panel("Queued", "short", "Waiting for room.", (Query(total(t.QUEUED, "worker"), "{{worker}}"),)),
                Panel(
                    "Time in the queue, p95", "s", "From arrival at the worker until there was a slot and pages.",
                    (Query(quantile(0.95, t.QUEUE_SECONDS, "worker"), "{{worker}}"),),
                ),
                Panel(
                    "Preemptions", "reqps", "Sequences that lost their places to others. Normal: none, or few.",
                    (Query(rate(t.PREEMPTIONS, "worker"), "{{worker}}"),), stacked=True,
                ),
                Panel(
                    "Endings", "reqps", "How sequences end. handoff: their snapshots have left.",
                    (Query(rate(t.FINISHED, "role", "finish"), "{{role}} {{finish}}"),), stacked=True,
                ),
            ),
        ),
        Row(
            "Cache",
            (
                Panel(
                    "Slots in use", "percentunit", "Of the linear state's. At 100 % sequences wait.",
                    (Query(used(t.FREE_SLOTS, t.SLOTS, "worker"), "{{worker}}"),), most=1,
                ),
                Panel(
                    "Pages in use", "percentunit", "Of the latents'. At 100 % sequences wait or lose their places.",
                    (Query(used(t.FREE_PAGES, t.PAGES, "worker"), "{{worker}}"),), most=1,
                ),
                Panel(
                    "Snapshots on their way", "short", "Coming or going.",
                    (Query(total(t.TRANSFERRING, "worker"), "{{worker}}"),),
                ),
            ),
        ),
        Row(
            "Kept snapshots",
            (
                Panel(
                    "Hit rate", "percentunit",
                    "Prompt tokens that were not computed, of all; prompts that began from a kept snapshot, of all.",
                    (
                        Query(
                            f"{rate(t.CACHE_HIT_TOKENS, 'role')} "
                            f"/ ({rate(t.CACHE_HIT_TOKENS, 'role')} + {rate(t.CACHE_MISSED_TOKENS, 'role')})",
                            "{{role}} tokens",
                        ),
                        # Each prompt computes a token at least, so that it counts among the misses.
                        Query(f"{rate(t.CACHE_HITS, 'role')} / {rate(t.CACHE_MISSES, 'role')}", "{{role}} prompts"),
                    ),
                    most=1,
                ),
                Panel(
                    "Prompts begun from one", "reqps", "By where it was.",
                    (Query(rate(t.CACHE_HITS, "origin"), "{{origin}}"),), stacked=True,
                ),
                Panel(
                    "Prompts with tokens to compute", "reqps", "All, by why no longer snapshot was there.",
                    (Query(rate(t.CACHE_MISSES, "reason"), "{{reason}}"),), stacked=True,
                ),
                Panel(
                    "Prompt tokens not computed", "short", "A second, by where the snapshot was.",
                    (Query(rate(t.CACHE_HIT_TOKENS, "origin"), "{{origin}}"),), stacked=True,
                ),
                Panel(
                    "Prompt tokens computed", "short", "A second, by why no longer snapshot was there.",
                    (Query(rate(t.CACHE_MISSED_TOKENS, "reason"), "{{reason}}"),), stacked=True,
                ),
                Panel(
                    "Kept", "short", "By tier, and how many the device may keep.",
                    (
                        Query(total(t.CACHE_SNAPSHOTS, "tier"), "{{tier}}"),
                        Query(total(t.CACHE_CAPACITY), "device at most"),
                    ),
                ),
                Panel(
                    "Left for others", "reqps", "Snapshots that made room, by tier.",
                    (Query(rate(t.CACHE_EVICTED, "tier"), "{{tier}}"),), stacked=True,
                ),
                Panel(
                    "Pages that only they hold", "short", "Given back as soon as sequences need them.",
                    (Query(total(t.CACHE_PAGES, "worker"), "{{worker}}"),),
                ),
                Panel(
                    "Host memory", "bytes", "That copies fill.",
                    (Query(total(t.CACHE_HOST_BYTES, "worker"), "{{worker}}"),),
                ),
                Panel(
                    "Files", "bytes", "Of the disk tier.",
                    (Query(total(t.CACHE_DISK_BYTES, "worker"), "{{worker}}"),),
                ),
                Panel(
                    "Files not used", "short", "Found at a worker's start: of other weights or layouts, or damaged.",
                    (Query(total(t.CACHE_DISK_IGNORED, "worker", "reason"), "{{worker}} {{reason}}"),),
                ),
                Panel(
                    "Workers' time saved", "short", "Seconds of computing saved, a second.",
                    (Query(rate(t.CACHE_SAVED_SECONDS, "role"), "{{role}}"),),
                ),
            ),
        ),
        Row(
            "Steps",
            (
                Panel(
                    "A step", "s", "From the plan's leaving to its result.",
                    (
                        Query(quantile(0.5, t.STEP_SECONDS, "worker"), "{{worker}} p50"),
                        Query(quantile(0.95, t.STEP_SECONDS, "worker"), "{{worker}} p95"),
                    ),
                ),
                Panel(
                    "Sequences a step", "short", "The mean batch.",
                    (Query(f"{rate(t.STEP_SEQUENCES, 'worker')} / {_STEPS}", "{{worker}}"),),
                ),
                Panel(
                    "Context", "short", "Tokens a sequence holds already when a step computes more of it, the mean.",
                    (Query(f"{rate(t.STEP_PAST, 'worker')} / {rate(t.STEP_SEQUENCES, 'worker')}", "{{worker}}"),),
                ),
                Panel(
                    "Tokens a second", "short", "Computed in steps, and sampled.",
                    (
                        Query(rate(t.STEP_TOKENS, "worker"), "{{worker}} computed"),
                        Query(rate(t.STEP_SAMPLED, "worker"), "{{worker}} sampled"),
                    ),
                ),
                Panel(
                    "Leader's time", "percentunit", "plan and take are what ranks wait for; normal: a few percent.",
                    (Query(shares(t.STEP_PHASES, "phase", "role"), "{{role}} {{phase}}"),), most=1,
                ),
                Panel(
                    "Rank 0's time", "percentunit", "transfer, draft, forward, sample, of one measured step a second.",
                    (Query(shares(t.RANK_PHASES, "phase", "role"), "{{role}} {{phase}}"),), most=1,
                ),
                Panel(
                    "The latest step", "s", "As routers are told.", (Query(total(t.STEP_TIME, "worker"), "{{worker}}"),)
                ),
            ),
        ),
        Row(
            "Speculation",
            (
                Panel(
                    "Drafts that stand", "percentunit", "Of those verified, by place in the run, 1 the first.",
                    (
                        Query(
                            f"{rate(t.DRAFTS, 'role', 'place', verdict='accepted')} "
                            f"/ {rate(t.DRAFTS, 'role', 'place')}",
                            "{{role}} {{place}}",
                        ),
                    ),
                    most=1,
                ),
                Panel(
                    "Drafts a second", "short", "Verified, by whether they stood.",
                    (Query(rate(t.DRAFTS, "role", "verdict"), "{{role}} {{verdict}}"),), stacked=True,
                ),
                Panel(
                    "Tokens a sequence and step", "short", "Sampled in decode workers; 1 without speculation.",
                    (
                        Query(
                            f"{rate(t.STEP_SAMPLED, 'worker', role='decode')} "
                            f"/ {rate(t.STEP_SEQUENCES, 'worker', role='decode')}",
                            "{{worker}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Snapshots",
            (
                Panel(
                    "Bytes a second", "Bps", "All ranks' together, out of prefill workers and into decode workers.",
                    (Query(rate(t.TRANSFER_BYTES, "worker", "direction"), "{{worker}} {{direction}}"),),
                ),
                Panel(
                    "Speed of a link", "Bps", "Bytes over the time links spend moving them.",
                    (
                        Query(
                            f"{rate(t.TRANSFER_BYTES, 'role', direction='in')} "
                            f"/ {rate(t.TRANSFER_BUSY, 'role', direction='in')}",
                            "into {{role}}",
                        ),
                    ),
                ),
                Panel(
                    "Transfer, p95", "s", "From a prompt's end until its snapshot is whole.",
                    (Query(quantile(0.95, t.TRANSFER_SECONDS, "worker", role="decode"), "{{worker}}"),),
                ),
            ),
        ),
    ),
)  # fmt: skip
