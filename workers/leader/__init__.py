"""A worker's front: it schedules, drives the ranks and speaks with routers and peers."""
