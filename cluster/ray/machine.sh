#!/usr/bin/env bash
# Prepares one machine for the recipes beside it: Python 3.11 with its headers, a C compiler, and the checkout in
# ~/ling installed into ~/ling-venv. `ray up` runs it on every node; what is there already is left alone.
set -euo pipefail
# torch's CUDA 13 needs it.
DRIVER=580

# Triton compiles a launcher for each kernel when it is first called, with gcc and Python.h.
complete() {
    command -v gcc >/dev/null && python3.11 -c '
import ensurepip, os, sysconfig
raise SystemExit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}

if ! complete; then
    sudo apt-get update -q
    # Ubuntu 22.04 has a release candidate of Python 3.11, and 24.04 has none.
    if ! apt-cache policy python3.11-venv | grep -q 'Candidate: 3\.11\.[1-9]'; then
        sudo apt-get install -qy software-properties-common
        sudo add-apt-repository -y ppa:deadsnakes/ppa
    fi
    sudo DEBIAN_FRONTEND=noninteractive apt-get install -qy gcc libc6-dev python3.11-venv python3.11-dev
    complete || { echo "$(hostname): python3.11 still lacks venv or headers, or gcc is missing" >&2; exit 1; }
fi

if command -v nvidia-smi >/dev/null; then
    found=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader)
    found=${found%%$'\n'*} # a line for each GPU
    if [ "${found%%.*}" -lt "$DRIVER" ]; then
        echo "$(hostname): NVIDIA driver $found is too old for torch's CUDA 13: install $DRIVER or newer" >&2
        exit 1
    fi
fi

# A venv that an interrupted run has left behind has no pip.
~/ling-venv/bin/python -m pip --version >/dev/null 2>&1 || python3.11 -m venv --clear ~/ling-venv
~/ling-venv/bin/python ~/ling/.ci/install --runtime
