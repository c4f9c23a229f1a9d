"""Routing policies against each other, over the planner's cost model: `python -m benchmarks.policies`."""
