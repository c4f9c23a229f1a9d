"""Forks test processes from one that has imported torch and the ranks' code, because importing takes seconds."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["workers.rank.process"])
