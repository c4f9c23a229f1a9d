"""Test processes forked from one that has imported torch and the ranks' code: a spawned one takes seconds to do so."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["workers.rank.process"])
