"""Before anything imports torch: one thread a process, here and in what tests start; cores are few, tests many."""

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
# Triton decides when a kernel is defined, which any test's imports may bring about.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
