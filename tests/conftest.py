"""Before anything imports torch: one thread a process, here and in what tests start; cores are few, tests many."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
