"""Tests the modules with Terraform and their real providers, where those are available (docs/TERRAFORM.md)."""

import os
import shutil
import subprocess
from pathlib import Path
from textwrap import shorten

import pytest

from tests.deploy.terraform import FOLDERS, ROOT, TERRAFORM, name_of, needs_terraform

pytestmark = needs_terraform

# What the module asks 6.x of hashicorp/aws for. A mirror with the last 5.x alone still checks all the rest.
_AWS_5 = {
    'version = "~> 6.25"': 'version = "~> 5.100"',
    "  deletion_protection           = var.deletion_protection\n": "",
    "data.aws_region.current.region": "data.aws_region.current.name",
}
# A registry that can't be reached says so at once.
_ENVIRONMENT = {"TF_REGISTRY_CLIENT_TIMEOUT": "10", "TF_REGISTRY_DISCOVERY_RETRY": "0"}


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TERRAFORM), f"-chdir={folder}", *arguments, "-no-color"],
        env=os.environ | _ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def init(folder: Path) -> str:
    """Get the providers from where Terraform is set up to look, or the plugin cache; returns the reason if it fails."""
    arguments = ("init", "-backend=false", "-input=false")
    done = run(folder, *arguments)
    if done.returncode != 0 and (cache := os.environ.get("TF_PLUGIN_CACHE_DIR")):
        # No cache then: a provider can't be installed where it lies.
        done = run(folder, *arguments, f"-plugin-dir={cache}", TF_PLUGIN_CACHE_DIR="")
    reason = " ".join(done.stderr.partition("Could not retrieve the list of available versions for ")[2].split())
    return "" if done.returncode == 0 else shorten(reason or done.stderr, 200)


def to_aws_5(root: Path) -> None:
    """Rewrite a copy of the modules for hashicorp/aws 5.x; each rewritten text must exist."""
    texts = {path: path.read_text() for path in root.rglob("*.tf")}
    for old, new in _AWS_5.items():
        assert any(old in text for text in texts.values()), old
        texts = {path: text.replace(old, new) for path, text in texts.items()}
    for path, text in texts.items():
        path.write_text(text)


@pytest.mark.recipe
@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_terraform_validates_it_with_its_providers(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "terraform"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".terraform*"))
    here = copy / folder.relative_to(ROOT)
    if init(here):
        to_aws_5(copy)
        if why := init(here):
            pytest.skip(f"providers can't be had: {why}")
    done = run(here, "validate")
    assert done.returncode == 0, done.stdout + done.stderr
    if (here / "tests").exists():
        done = run(here, "test")
        assert done.returncode == 0, done.stdout + done.stderr
        assert " 0 failed" in done.stdout
