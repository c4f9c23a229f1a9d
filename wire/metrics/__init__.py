"""Metrics of a process: the table of all metrics, and their values until a reader takes them."""
