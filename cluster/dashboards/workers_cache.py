"""The workers board: it shows what each worker computes, how full it is, and where its steps' time goes."""

from cluster.dashboards.board import Board, Panel, Query, Row
from cluster.dashboards.promql import quantile, rate, shares, total, used
from wire.metrics import table as t

_STEPS = rate(t.STEP_SECONDS, "worker", suffix="_count")

WORKERS = Board(
    "ling-workers",
    "Ling / Workers & cache",
    "What each worker computes, how full it is, and where its steps' time goes.",
    (
        Row(
            "Load",
            (
                Panel(
                    "Sequences running", "short", "Sequences that the worker computes in its steps.",
                    (Query(total(t.RUNNING, "worker"), "{{worker}}"),),
                ),
                Panel(
                    "Sequences waiting", "short", "Sequences that wait in the worker for a slot or pages.",
                    (Query(total(t.QUEUED, "worker"), "{{worker}}"),),
                ),
                Panel(
                    "Time in the queue, p95", "s",
                    "Time from a sequence's arrival at the worker until it got its slot and pages.",
                    (Query(quantile(0.95, t.QUEUE_SECONDS, "worker"), "{{worker}}"),),
                ),
                Panel(
                    "Preemptions", "reqps", "Sequences that lost their slot and pages to others. Normal: few or none.",
                    (Query(rate(t.PREEMPTIONS, "worker"), "{{worker}}"),), stacked=True,
                ),
                Panel(
                    "Finished sequences", "reqps",
                    "Sequences by how they finished. `handoff`: the prefill worker has sent the snapshot; `moved`: "
                    "another worker continues the answer.",
                    (Query(rate(t.FINISHED, "role", "finish"), "{{role}} {{finish}}"),), stacked=True,
                ),
            ),
        ),
        Row(
            "Cache",
            (
                Panel(
                    "Slots in use", "percentunit", "Share of the linear state's slots in use. At 100 % sequences wait.",
                    (Query(used(t.FREE_SLOTS, t.SLOTS, "worker"), "{{worker}}"),), most=1,
                ),
                Panel(
                    "Pages in use", "percentunit",
                    "Share of the latents' pages in use. At 100 % sequences wait or are preempted.",
                    (Query(used(t.FREE_PAGES, t.PAGES, "worker"), "{{worker}}"),), most=1,
                ),
                Panel(
                    "Snapshots in transfer", "short", "Snapshots that the worker receives or sends at the moment.",
                    (Query(total(t.TRANSFERRING, "worker"), "{{worker}}"),),
                ),
            ),
        ),
        Row(
            "Kept snapshots",
            (
                Panel(
                    "Hit rate", "percentunit",
                    "Share of prompt tokens that the cache saved from being computed, and share of prompts that began "
                    "from a kept snapshot.",
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
                    "Prompts begun from a kept snapshot", "reqps",
                    "Prompts by where their snapshot was: on the device, in host memory, on disk or at another worker.",
                    (Query(rate(t.CACHE_HITS, "origin"), "{{origin}}"),), stacked=True,
                ),
                Panel(
                    "Prompts with tokens to compute", "reqps",
                    "Prompts by the reason why no longer prefix of them was kept.",
                    (Query(rate(t.CACHE_MISSES, "reason"), "{{reason}}"),), stacked=True,
                ),
                Panel(
                    "Prompt tokens not computed", "short",
                    "Prompt tokens per second that kept snapshots saved, by where the snapshot was.",
                    (Query(rate(t.CACHE_HIT_TOKENS, "origin"), "{{origin}}"),), stacked=True,
                ),
                Panel(
                    "Prompt tokens computed", "short",
                    "Prompt tokens per second that were computed, by the reason why they were not kept.",
                    (Query(rate(t.CACHE_MISSED_TOKENS, "reason"), "{{reason}}"),), stacked=True,
                ),
                Panel(
                    "Snapshots by tier", "short",
                    "Kept snapshots on the device, in host memory and on disk, and how many the device may keep.",
                    (
                        Query(total(t.CACHE_SNAPSHOTS, "tier"), "{{tier}}"),
                        Query(total(t.CACHE_CAPACITY), "device at most"),
                    ),
                ),
                Panel(
                    "Evictions", "reqps", "Kept snapshots that a tier dropped to make room for others.",
                    (Query(rate(t.CACHE_EVICTED, "tier"), "{{tier}}"),), stacked=True,
                ),
                Panel(
                    "Pages of kept snapshots only", "short",
                    "Latent pages that only kept snapshots hold. Sequences that need pages take these.",
                    (Query(total(t.CACHE_PAGES, "worker"), "{{worker}}"),),
                ),
                Panel(
                    "Host memory in use", "bytes", "Host memory that kept snapshots use.",
                    (Query(total(t.CACHE_HOST_BYTES, "worker"), "{{worker}}"),),
                ),
                Panel(
                    "Disk in use", "bytes", "Size of the disk tier's files.",
                    (Query(total(t.CACHE_DISK_BYTES, "worker"), "{{worker}}"),),
                ),
                Panel(
                    "Files not used", "short",
                    "Files of the disk tier that a worker found at its start and does not use. `foreign`: of other "
                    "weights or layouts; `damaged`: erased.",
                    (Query(total(t.CACHE_DISK_IGNORED, "worker", "reason"), "{{worker}} {{reason}}"),),
                ),
                Panel(
                    "Computing time saved", "short",
                    "Seconds of computing that kept snapshots save per second, by pool. 1 is the work of one worker.",
                    (Query(rate(t.CACHE_SAVED_SECONDS, "role"), "{{role}}"),),
                ),
            ),
        ),
        Row(
            "Steps",
            (
                Panel(
                    "Step duration", "s", "Time from sending a step's plan to the ranks until their result is back.",
                    (
                        Query(quantile(0.5, t.STEP_SECONDS, "worker"), "{{worker}} p50"),
                        Query(quantile(0.95, t.STEP_SECONDS, "worker"), "{{worker}} p95"),
                    ),
                ),
                Panel(
                    "Sequences per step", "short", "Mean number of sequences in a step.",
                    (Query(f"{rate(t.STEP_SEQUENCES, 'worker')} / {_STEPS}", "{{worker}}"),),
                ),
                Panel(
                    "Context length", "short",
                    "Mean number of tokens that a sequence already holds when a step computes more of it.",
                    (Query(f"{rate(t.STEP_PAST, 'worker')} / {rate(t.STEP_SEQUENCES, 'worker')}", "{{worker}}"),),
                ),
                Panel(
                    "Tokens per second", "short", "Tokens computed in steps, and tokens sampled.",
                    (
                        Query(rate(t.STEP_TOKENS, "worker"), "{{worker}} computed"),
                        Query(rate(t.STEP_SAMPLED, "worker"), "{{worker}} sampled"),
                    ),
                ),
                Panel(
                    "Time of steps by phase", "percentunit",
                    "`schedule`: the leader plans; `compute`: the ranks compute; `emit`: the leader takes the results; "
                    "`idle`: the ranks had nothing to do between two steps. Normal under load: idle is a few percent.",
                    (Query(shares(t.STEP_PHASES, "phase", "role"), "{{role}} {{phase}}"),), most=1,
                ),
                Panel(
                    "Rank 0's time by phase", "percentunit",
                    "Shares of rank 0's time in one measured step a second: `transfer`, `draft`, `forward` and "
                    "`sample` on its device, `launch` on its host.",
                    (Query(shares(t.RANK_PHASES, "phase", "role"), "{{role}} {{phase}}"),), most=1,
                ),
                Panel(
                    "Latest step's duration", "s", "Duration of the latest step, as the worker reports it to routers.",
                    (Query(total(t.STEP_TIME, "worker"), "{{worker}}"),),
                ),
            ),
        ),
        Row(
            "Speculation",
            (
                Panel(
                    "Acceptance rate", "percentunit",
                    "Accepted drafts over verified drafts, by the draft's place in its run; 1 is the first.",
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
                    "Drafts per second", "short", "Verified drafts, by verdict: accepted or rejected.",
                    (Query(rate(t.DRAFTS, "role", "verdict"), "{{role}} {{verdict}}"),), stacked=True,
                ),
                Panel(
                    "Tokens per sequence and step", "short",
                    "Tokens that decode workers sample per sequence in a step; 1 without speculation.",
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
                    "Bytes per second", "Bps", "Snapshot bytes that all ranks of a worker send (out) and receive (in).",
                    (Query(rate(t.TRANSFER_BYTES, "worker", "direction"), "{{worker}} {{direction}}"),),
                ),
                Panel(
                    "Speed of a link", "Bps", "Received snapshot bytes over the time that links spend receiving them.",
                    (
                        Query(
                            f"{rate(t.TRANSFER_BYTES, 'role', direction='in')} "
                            f"/ {rate(t.TRANSFER_BUSY, 'role', direction='in')}",
                            "into {{role}}",
                        ),
                    ),
                ),
                Panel(
                    "Links by channel", "short", "Links over which snapshots come, by what they agreed on.",
                    (Query(total(t.TRANSFER_LINKS, "role", "channel"), "into {{role}} {{channel}}"),),
                ),
                Panel(
                    "Snapshot transfer, p95", "s",
                    "Time from a prompt's last computed token until the decode worker has the whole snapshot.",
                    (Query(quantile(0.95, t.TRANSFER_SECONDS, "worker", role="decode"), "{{worker}}"),),
                ),
            ),
        ),
    ),
)  # fmt: skip
