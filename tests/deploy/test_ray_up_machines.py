"""Tests the images of `ray up`'s machines, and their setup script with fake programs."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.deploy.test_ray_up import RECIPES, ROOT, load

# Names that clouds have taken away, and releases of Ubuntu that have no Python 3.11 or no driver for CUDA 13.
DEAD = ("latest_dlami", "family/common-cpu", "common-cu128", "ubuntu-1804", "ubuntu-2004", "ubuntu/server/20.04")
DRIVER = re.compile(r"base-oss-nvidia-driver-gpu-ubuntu-2[24]\.04|ubuntu-2[24]04-nvidia-580")
RELEASE = re.compile(r"(?:ubuntu[-/](?:server/)?)2[24]\.?04")
CLOUDS = [path for path in RECIPES if path.stem != "onprem"]


def images(path: Path) -> dict[str, str]:
    """The image of each node type."""
    found = {}
    for name, node_type in load(path)["available_node_types"].items():
        (image,) = re.findall(r'"(?:ImageId|sourceImage)": "([^"]+)"', json.dumps(node_type))
        found[name] = image
    return found


@pytest.mark.parametrize("path", CLOUDS, ids=lambda p: p.stem)
def test_images_are_current_and_those_of_gpu_nodes_have_the_driver(path: Path) -> None:
    for name, image in images(path).items():
        assert not [dead for dead in DEAD if dead in image]
        assert RELEASE.search(image), image
        assert bool(DRIVER.search(image)) == (name != "head"), image


def test_gpu_nodes_may_read_the_checkpoint_s_bucket() -> None:
    aws, gcp = (load(ROOT / f"cluster/ray/{cloud}.yaml")["available_node_types"] for cloud in ("aws", "gcp"))
    for name, node_type in aws.items():
        profile = "ling-head" if name == "head" else "ling-node"
        assert node_type["node_config"]["IamInstanceProfile"] == {"Name": profile}
    for name, node_type in gcp.items():
        accounts = node_type["node_config"].get("serviceAccounts", [])
        # Ray gives the head an account of its own.
        assert [a["scopes"] for a in accounts] == (
            [] if name == "head" else [["https://www.googleapis.com/auth/devstorage.read_only"]]
        )


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_prepares_its_machines_by_the_one_script(path: Path) -> None:
    setup = load(path)["setup_commands"]
    assert setup[0] == "~/ling/cluster/ray/machine.sh"
    assert not [command for command in setup if "python3.11" in command]


@dataclass
class Machine:
    """A machine with a home folder and fake programs on its PATH, each of which logs its call in `calls`."""

    home: Path
    tools: Path
    calls: list[str] = field(default_factory=list)

    def play(self, name: str, script: str = "") -> None:
        program = self.tools / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> "{self.home}/calls"\n{script}\n')
        program.chmod(0o755)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.tools), "HOME": str(self.home)}
        command = ["/bin/bash", str(ROOT / "cluster/ray" / script), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        log = self.home / "calls"
        self.calls = log.read_text().splitlines() if log.exists() else []
        return done


# Says that Python is whole once apt has installed it, or `ready` is there.
PYTHON = """
case "$1" in
    -c) [ -e "$HOME/ready" ];;
    -m) [ "$2" != venv ] || { install -d "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python"; };;
esac"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cp", "env", "grep", "head", "hostname", "install", "touch"):
        os.symlink(str(shutil.which(name)), tools / name)
    made = Machine(tmp_path, tools)
    made.play("python3.11", PYTHON)
    made.play("sudo", '[ "$1" != DEBIAN_FRONTEND=noninteractive ] || shift; exec "$@"')
    made.play("apt-get", '[[ "$*" != *python3.11-dev* ]] || touch "$HOME/ready"')
    made.play("add-apt-repository")
    made.play("gcc")
    return made


def test_a_python_without_venv_and_headers_is_completed(machine: Machine) -> None:
    machine.play("apt-cache", "echo '  Candidate: 3.11.2-6'")
    done = machine.run("machine.sh")
    assert done.returncode == 0, done.stderr
    assert "apt-get install -qy gcc libc6-dev python3.11-venv python3.11-dev" in machine.calls
    assert not [call for call in machine.calls if call.startswith("add-apt")]
    assert machine.calls[-1].endswith("ling/.ci/install --runtime")


@pytest.mark.parametrize("candidate", ["3.11.0~rc1-1~22.04", "(none)"])
def test_ubuntu_takes_a_released_python(machine: Machine, candidate: str) -> None:
    machine.play("apt-cache", f"echo '  Candidate: {candidate}'")
    done = machine.run("machine.sh")
    assert done.returncode == 0, done.stderr
    assert "add-apt-repository -y ppa:deadsnakes/ppa" in machine.calls


def test_a_whole_machine_is_left_alone(machine: Machine) -> None:
    (machine.home / "ready").touch()
    assert machine.run("machine.sh").returncode == 0
    assert not [call for call in machine.calls if call.startswith(("sudo", "apt"))]


def test_a_python_that_stays_incomplete_is_named(machine: Machine) -> None:
    machine.play("apt-cache", "echo '  Candidate: 3.11.2-6'")
    machine.play("apt-get")
    done = machine.run("machine.sh")
    assert done.returncode == 1
    assert "still lacks venv or headers" in done.stderr


@pytest.mark.parametrize(("version", "accepted"), [("580.65.06", True), ("590.1", True), ("570.172.08", False)])
def test_a_driver_older_than_cuda_13_is_refused(machine: Machine, version: str, accepted: bool) -> None:
    (machine.home / "ready").touch()
    machine.play("nvidia-smi", f"echo {version}; echo {version}")
    done = machine.run("machine.sh")
    assert (done.returncode == 0) == accepted, done.stderr
    assert accepted or f"driver {version} is too old" in done.stderr
    assert "cuda-toolkit==13." in (ROOT / "constraints-cuda.txt").read_text()


def test_the_roles_of_aws_are_valid_and_no_wider_than_needed(machine: Machine) -> None:
    machine.play(
        "aws",
        """
[[ "$*" == *get-caller-identity* ]] && echo 123456789012
for word; do [[ "$word" != {* ]] || { echo "$word"; echo ";"; } >> "$HOME/documents"; done""",
    )
    done = machine.run("aws-roles.sh", "weights")
    assert done.returncode == 0, done.stderr
    documents = [json.loads(text) for text in (machine.home / "documents").read_text().split(";\n") if text.strip()]
    allowed = {
        (action, resource)
        for document in documents
        for statement in document["Statement"]
        for action, resource in [(statement["Action"], statement.get("Resource"))]
    }
    assert allowed == {
        ("sts:AssumeRole", None),
        ("s3:ListBucket", "arn:aws:s3:::weights"),
        ("s3:GetObject", "arn:aws:s3:::weights/*"),
        ("ssm:GetParameters", "arn:aws:ssm:*::parameter/aws/service/*"),
        ("iam:PassRole", "arn:aws:iam::123456789012:role/ling-node"),
    }
    assert machine.run("aws-roles.sh").returncode != 0
