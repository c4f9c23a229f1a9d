# docker build --target cpu -t ling:cpu .      (laptops, routers, heads)
# docker build --target cuda -t ling:cuda .    (the same with torch's CUDA build)
# --build-arg EXTRAS=[nixl] adds a channel of hand-offs for hosts with RDMA (docs/DEPLOY.md).
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS source
WORKDIR /app
COPY pyproject.toml constraints.txt constraints-cpu.txt constraints-cuda.txt README.md LICENSE ./
COPY cluster cluster
COPY router router
COPY workers workers
COPY wire wire
COPY planner planner
COPY kernels kernels
COPY checkpoints checkpoints
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/ling

FROM source AS build-cpu
ARG EXTRAS=
# torch comes from its own index first, because pip would take the CUDA build from PyPI.
RUN /opt/ling/bin/pip install --index-url https://download.pytorch.org/whl/cpu "torch==2.13.0" \
    && /opt/ling/bin/pip install --constraint constraints.txt --constraint constraints-cpu.txt --editable ".${EXTRAS}"

FROM source AS build-cuda
ARG EXTRAS=
# PyPI's wheel brings CUDA 13 along; the driver, 580 or newer, comes from the host.
RUN /opt/ling/bin/pip install --constraint constraints.txt --constraint constraints-cuda.txt --editable ".${EXTRAS}"

FROM python:${PYTHON} AS runtime
RUN groupadd --gid 10001 ling && useradd --uid 10001 --gid ling --create-home ling
WORKDIR /app
ENV PATH=/opt/ling/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
# A volume that is mounted here for compiled kernels begins as a folder of this user's.
RUN install --directory --owner=ling --group=ling /var/cache/ling
# Written to at run time: /tmp (Ray's session, Triton's cache) and what is mounted. All else may be read-only.
ENV HOME=/tmp/home TRITON_CACHE_DIR=/tmp/triton
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGINT
CMD ["ling", "serve", "--host", "0.0.0.0", "--port", "8000"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/ling /opt/ling
COPY --from=build-cpu /app /app
USER 10001:10001

FROM runtime AS cuda
# Triton compiles a launcher for each kernel with the system's C compiler; NCCL loads libibverbs for InfiniBand and RoCE.
# The base's tag decides the release, and its archive keeps one version of a package at a time.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
        libibverbs1 ibverbs-providers librdmacm1 && rm -rf /var/lib/apt/lists/*
COPY --from=build-cuda /opt/ling /opt/ling
COPY --from=build-cuda /app /app
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
