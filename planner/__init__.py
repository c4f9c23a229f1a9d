"""The capacity planner: computes in closed form what a model needs of a card, and how fast it can be there.

`shape` reads a config, `tensors` lists its weights, `counts` adds them up; `memory` divides a card, `work` counts
a step's bytes and FLOPs, `speed` turns them into seconds; `traffic` sizes both pools; `plan` puts it together,
`words` says it, `command` is `ling plan`.
"""
