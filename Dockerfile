# The images of both services and of the HTTP gateway: docker build --target cpu-expert-service . (or gpu-service, or
# http-gateway). compose.yaml builds them.
#
#   PYTHON_IMAGE, PROMETHEUS_IMAGE   the images that these are built on. A digest pins one for good, where NAME:TAG may
#                 come to mean another image: NAME:TAG@sha256:..., as `docker buildx imagetools inspect NAME:TAG` prints it
#   TORCH_INDEX   the index that PyTorch itself comes from, and nothing else. As it is, PyTorch's index of builds for the
#                 CPU. https://pypi.org/simple: PyPI's own, with CUDA on x86-64 Linux
#   TORCH         what is asked of it, within constraints.txt, e.g. torch==2.13.0+cu128, or with its hash, which differs by
#                 index: "torch @ https://.../torch-2.13.0....whl#sha256=..."
#
# All other packages come from PyPI, and each file's hash must be one of those in requirements/*.lock (`make locks`). Only
# the CUDA libraries, which PyTorch's builds for CUDA name by exact version, are taken without.
#
# Stages that run anything install into layers of their own, so that a change in the code builds neither of the large
# ones again, and the images share the layer with PyTorch where they have the same build of it.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG PROMETHEUS_IMAGE=prom/prometheus:v2.42.0

FROM ${PYTHON_IMAGE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_CONSTRAINT=/constraints.txt

# pip of a version that constraints.txt knows, and what builds the wheel: never in an image that runs
FROM base AS tools
COPY constraints.txt requirements/tools.lock /
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/tools && /opt/tools/bin/pip install --quiet --upgrade --require-hashes --requirement /tools.lock

# compiles the kernels for every CPU tier; which one runs is found out when the service starts
FROM tools AS builder
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY fiddler fiddler
COPY cpu_expert_service cpu_expert_service
COPY gpu_service gpu_service
COPY client client
COPY http_gateway http_gateway
COPY pair pair
COPY fiddler_checkup fiddler_checkup
COPY fiddler_cli fiddler_cli
RUN --mount=type=cache,target=/build \
    PATH=/opt/tools/bin:$PATH pip wheel --no-deps --no-build-isolation -C build-dir=/build -w /wheels . \
    # without a compiler the build would go on without kernels
 && python -m zipfile -l /wheels/*.whl | grep -q fiddler/kernels/_native.so

FROM base AS cpu-packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=torch
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=tools,source=/constraints.txt,target=/constraints.txt \
    --mount=type=bind,source=requirements/cpu-expert-service.lock,target=/requirements.lock \
    --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/fiddler \
 && pip="/opt/tools/bin/pip --python /opt/fiddler/bin/python install --quiet" \
    # the build is chosen without what it needs, which comes from the usual index
 && $pip --no-deps --index-url "$TORCH_INDEX" "$TORCH" \
 && $pip --require-hashes --requirement /requirements.lock \
    # the CUDA libraries, if it is such a build; otherwise all that it needs is there
 && $pip "$TORCH" \
    # packages' own tests; PyTorch's headers and its protoc, but torch_shm_manager, which `import torch` looks for
 && cd /opt/fiddler/lib/python3*/site-packages \
 && find sympy numpy networkx -type d -name tests -prune -exec rm -r {} + \
 && rm -rf torch/include torch/share torch/test \
 && find torch/bin -mindepth 1 ! -name torch_shm_manager -delete

FROM cpu-packages AS gpu-packages
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=tools,source=/constraints.txt,target=/constraints.txt \
    --mount=type=bind,source=requirements/gpu-service.lock,target=/requirements.lock \
    --mount=type=cache,target=/root/.cache/pip \
    /opt/tools/bin/pip --python /opt/fiddler/bin/python install --quiet --require-hashes --requirement /requirements.lock

FROM cpu-packages AS cpu-expert-service
LABEL org.opencontainers.image.title="fiddler CPU expert service" org.opencontainers.image.licenses=Apache-2.0
# checkpoints that --expert-format converts are kept in the cache's directory, in a volume that both services have
ENV PATH=/opt/fiddler/bin:$PATH FIDDLER_CPU_MODEL=/model HF_HUB_CACHE=/hub FIDDLER_CPU_METRICS_HOST=0.0.0.0 \
    XDG_CACHE_HOME=/var/cache/fiddler
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=tools,source=/constraints.txt,target=/constraints.txt \
    --mount=type=bind,from=builder,source=/wheels,target=/wheels \
    /opt/tools/bin/pip --python /opt/fiddler/bin/python install --quiet --no-deps /wheels/*.whl \
 && groupadd --gid 10001 fiddler && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent fiddler \
 && install -d -o fiddler -g fiddler -m 0700 /run/fiddler /var/cache/fiddler /var/cache/fiddler/fiddler \
    /var/cache/fiddler/fiddler/converted
USER 10001:10001
EXPOSE 9101
ENTRYPOINT ["python", "-m", "cpu_expert_service"]

FROM gpu-packages AS gpu-service
LABEL org.opencontainers.image.title="fiddler GPU service" org.opencontainers.image.licenses=Apache-2.0
# measured costs are kept in the cache's directory, which a volume can make outlive the container
ENV PATH=/opt/fiddler/bin:$PATH FIDDLER_GPU_MODEL=/model HF_HUB_CACHE=/hub FIDDLER_GPU_METRICS_HOST=0.0.0.0 \
    FIDDLER_GPU_LISTEN=0.0.0.0:50051 XDG_CACHE_HOME=/var/cache/fiddler TRITON_CACHE_DIR=/var/cache/fiddler/triton
# PyTorch's builds for CUDA bring Triton, which compiles in C what launches its kernels
RUN if [ -d "$(echo /opt/fiddler/lib/python3*/site-packages/triton)" ]; then apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; fi
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=tools,source=/constraints.txt,target=/constraints.txt \
    --mount=type=bind,from=builder,source=/wheels,target=/wheels \
    /opt/tools/bin/pip --python /opt/fiddler/bin/python install --quiet --no-deps /wheels/*.whl \
 && groupadd --gid 10001 fiddler && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent fiddler \
 && install -d -o fiddler -g fiddler -m 0700 /run/fiddler /var/cache/fiddler /var/cache/fiddler/fiddler \
    /var/cache/fiddler/fiddler/converted
USER 10001:10001
EXPOSE 50051 9100
ENTRYPOINT ["python", "-m", "gpu_service"]

# needs neither PyTorch nor the kernels
FROM base AS http-gateway
LABEL org.opencontainers.image.title="fiddler HTTP gateway" org.opencontainers.image.licenses=Apache-2.0
ENV PATH=/opt/fiddler/bin:$PATH FIDDLER_HTTP_LISTEN=0.0.0.0:8000
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=tools,source=/constraints.txt,target=/constraints.txt \
    --mount=type=bind,source=requirements/http-gateway.lock,target=/requirements.lock \
    --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/fiddler \
 && /opt/tools/bin/pip --python /opt/fiddler/bin/python install --quiet --require-hashes --requirement /requirements.lock
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=tools,source=/constraints.txt,target=/constraints.txt \
    --mount=type=bind,from=builder,source=/wheels,target=/wheels \
    /opt/tools/bin/pip --python /opt/fiddler/bin/python install --quiet --no-deps /wheels/*.whl \
 && groupadd --gid 10001 fiddler && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent fiddler
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["python", "-m", "http_gateway"]

# Prometheus as it is published, whose data directory belongs to nobody there too where an image was built otherwise: a
# new volume takes its owner from here
FROM base AS directories
RUN install -d -o 65534 -g 65534 /data/prometheus
FROM ${PROMETHEUS_IMAGE} AS prometheus
COPY --from=directories --chown=65534:65534 /data/ /
USER 65534:65534
