"""Compares routing policies in a simulation by the planner's cost model: `python -m benchmarks.policies`."""
