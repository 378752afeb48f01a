# Ambidex with the CPU wheel of torch.
#
#   docker compose build train-cpu
#
# Its twin is nightly.Dockerfile, for the variants with CUDA. Below this comment the two differ in the default of
# VARIANT and in nothing else, and a test holds them to it; what is more than a line lies in install.py and record.py.
#
# Build arguments, each with the usual thing as its default (docs/containers.md has a worked example of each):
#   BASE_IMAGE     a Debian with Python 3.11 or newer
#   VARIANT        a row of src/ambidex/device/variants.toml
#   COMPILER       the packages that torch.compile needs; empty: none, and no network is asked for them
#   TORCH_INDEX    your mirror of the row's index; empty: the row's own
#   PYTHON_INDEX   your mirror of the Python package index; empty: pip's own default
#   APT_MIRROR     your mirror of Debian; empty: the base image's own
#   REVISION       the commit that is built, for the record and the label
# Build secret `ca`: a company's certificate (PEM), trusted besides the usual ones.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG VARIANT=cpu

# One row of the table and its pins, alone: what the big layers below are keyed by.
FROM ${BASE_IMAGE} AS pin
ARG VARIANT
COPY src/ambidex/device/variants.toml docker/pin.py /table/
COPY docker/requirements /table/requirements
RUN python3 /table/pin.py "${VARIANT}" /table/variants.toml /table/requirements /pin

# The compiler, the user, and an empty environment: Debian keeps its own Python for itself.
FROM ${BASE_IMAGE} AS system
ARG COMPILER="g++"
ARG APT_MIRROR=
RUN --mount=type=bind,source=docker/install.py,target=/build/install.py \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    python3 /build/install.py system && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# Gigabytes. Nothing of the project is copied above or into this stage but the pins, so a source edit leaves it alone.
FROM system AS dependencies
ARG TORCH_INDEX=
ARG PYTHON_INDEX=
ENV PIP_CACHE_DIR=/var/cache/pip
RUN --mount=type=bind,from=pin,source=/pin,target=/pin \
    --mount=type=bind,source=docker/install.py,target=/build/install.py \
    --mount=type=bind,source=docker/wheels,target=/wheels \
    --mount=type=cache,id=ambidex-pip,target=/var/cache/pip \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    python /build/install.py torch && python /build/install.py requirements
# The gate: the build stops here if what came is not what the row says.
RUN --mount=type=bind,from=pin,source=/pin,target=/pin \
    --mount=type=bind,source=docker/record.py,target=/build/record.py \
    python /build/record.py torch

# The tools of the test image, in a folder of their own, so that the image that trains does not hold them.
FROM dependencies AS test-tools
ARG PYTHON_INDEX=
RUN --mount=type=bind,from=pin,source=/pin,target=/pin \
    --mount=type=bind,source=docker/install.py,target=/build/install.py \
    --mount=type=bind,source=docker/wheels,target=/wheels \
    --mount=type=cache,id=ambidex-pip,target=/var/cache/pip \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    python /build/install.py tests

# Kilobytes: a source edit builds again from here.
FROM dependencies AS trainer
ARG REVISION=
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN --mount=type=bind,source=docker/install.py,target=/build/install.py \
    --mount=type=bind,source=docker/record.py,target=/build/record.py \
    python /build/install.py project && python /build/record.py project
# USER and HOME are names that torch's compiler looks up even for a user id that has none (pytorch#140765).
# What is written at run time goes into /cache, so that the rest can be read-only.
ENV USER=trainer \
    HOME=/home/trainer \
    AMBIDEX_RUNS=/runs \
    AMBIDEX_CACHE=/cache \
    MPLCONFIGDIR=/cache/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 1000:0
WORKDIR /home/trainer
VOLUME /cache
ARG BASE_IMAGE
ARG VARIANT
LABEL org.opencontainers.image.title="ambidex" \
      org.opencontainers.image.description="One transformer trainer for every PyTorch build: the variant ${VARIANT}" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.revision="${REVISION}" \
      ambidex.variant="${VARIANT}" \
      ambidex.record="/opt/ambidex/record.json"
ENTRYPOINT ["ambidex"]
CMD ["doctor"]

# The same image and the tools to test it:  docker compose run --rm tests
FROM trainer AS tests
COPY --from=test-tools /opt/test-tools /opt/test-tools
ENV PYTHONPATH=/opt/test-tools
ENTRYPOINT ["python", "-m", "pytest"]
CMD ["--help"]

# Last, so that it is what a build without a target makes.
FROM trainer
