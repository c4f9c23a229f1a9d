"""A worker's leader: it schedules, drives the ranks, and talks to routers and peers."""
