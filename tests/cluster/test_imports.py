"""Tests which modules every `ling` command imports before it begins."""

import subprocess
import sys


def test_ling_commands_import_no_module_that_only_some_need() -> None:
    code = "import sys, cluster.cli; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert {"torch", "ray", "tokenizers", "jinja2", "huggingface_hub", "obstore"}.isdisjoint(loaded.stdout.split())
