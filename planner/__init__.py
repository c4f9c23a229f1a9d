"""The capacity planner: computes in closed form what memory a model needs on a card, and how fast it can run there.

`model` reads a config, `tensors` lists its weights, `counts` adds them up; `memory` divides a card, `work` counts
a step's bytes and FLOPs, `speed` turns them into seconds; `traffic` sizes both pools; `plan` puts all together,
`words` writes remarks on it, `render` prints it as tables, and `cluster/plan.py` is the command `ling plan`.
"""
