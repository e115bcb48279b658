# Coldstream for processors (--target cpu) or for NVIDIA's GPUs (--target cuda, the default). docs/image.md has the commands.
# The secrets pip.conf and sources.list are for who has indexes of their own: without one its mount is left out, and none is in a layer.

# Debian 12 or newer with Python 3.11 or newer, venv, and for `cuda` Python.h; both targets are this and what follows.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# What installs, and is not in the image: pip, the build backend, the writer of the bill of materials.
FROM ${BASE_IMAGE} AS build
WORKDIR /build
COPY pyproject.toml constraints.txt image/install ./
# torch is chosen below, and names its own Triton; the pin of Triton is for the tests of machines without a GPU.
RUN --mount=type=secret,id=pip.conf python3 -m venv venv \
    && PIP_CONFIG_FILE=/run/secrets/pip.conf venv/bin/python -m pip install --quiet --no-cache-dir --constraint constraints.txt cyclonedx-bom hatchling \
    && sed -i -E '/^(torch|triton)==/d' constraints.txt \
    && python3 -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["otel"], sep="\n")' > requirements.txt

FROM build AS wheel
COPY README.md LICENSE ./
COPY streaming streaming
COPY app app
RUN venv/bin/python -m pip wheel --quiet --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist .

# Everything but packages. Some images of Python come without the bytecode of its library, whose tests have broken sources.
FROM ${BASE_IMAGE} AS base
RUN groupadd --gid 65532 coldstream \
    && useradd --no-log-init --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin coldstream \
    && python3 -m venv --without-pip /opt/coldstream \
    && python3 -m compileall -q -j 0 -x '/tests?/' --invalidation-mode unchecked-hash "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
# Whatever is written goes below /tmp, so that all else can be read-only. k8s/base says the same.
ENV PATH=/opt/coldstream/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    TMPDIR=/tmp \
    XDG_CACHE_HOME=/tmp/.cache \
    TRITON_CACHE_DIR=/tmp/triton \
    CUDA_CACHE_PATH=/tmp/cuda
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/coldstream/bin/coldstream"]
CMD ["serve"]
LABEL org.opencontainers.image.title="coldstream" \
      org.opencontainers.image.description="An OpenAI-compatible inference server whose weights stream from Blob storage while Python is still importing torch." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# Largest and least changed first: torch, then what else is needed, then our own code.
FROM base AS cpu
ARG TORCH_VERSION=2.13.0
ARG CPU_TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=bind,from=build,source=/build,target=/mnt --mount=type=secret,id=pip.conf \
    /mnt/install --extra-index-url "${CPU_TORCH_INDEX}" "torch==${TORCH_VERSION}"
# hadolint ignore=DL3059
RUN --mount=type=bind,from=build,source=/build,target=/mnt --mount=type=secret,id=pip.conf \
    /mnt/install --requirement /mnt/requirements.txt
# hadolint ignore=DL3059
RUN --mount=type=bind,from=wheel,source=/build,target=/mnt \
    /mnt/install --no-deps /mnt/dist/*.whl \
    && /mnt/venv/bin/python -m cyclonedx_py environment --output-reproducible --output-file /opt/coldstream/sbom.cdx.json /opt/coldstream/bin/python
ARG REVISION=""
LABEL org.opencontainers.image.revision="${REVISION}"
USER 65532:65532

FROM base AS gpu
# What NVIDIA's container runtime puts in, where no device plugin says so; and where, which is a part of what Triton finds its
# module by, so that it is the same for what is compiled here.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_LIBCUDA_PATH=/usr/lib/x86_64-linux-gnu
ARG TORCH_VERSION=2.13.0
ARG CUDA_TORCH_INDEX=https://download.pytorch.org/whl/cu130
RUN --mount=type=bind,from=build,source=/build,target=/mnt --mount=type=secret,id=pip.conf \
    /mnt/install --extra-index-url "${CUDA_TORCH_INDEX}" "torch==${TORCH_VERSION}"
# hadolint ignore=DL3059
RUN --mount=type=bind,from=build,source=/build,target=/mnt --mount=type=secret,id=pip.conf \
    /mnt/install --requirement /mnt/requirements.txt
# hadolint ignore=DL3059
RUN --mount=type=bind,from=wheel,source=/build,target=/mnt \
    /mnt/install --no-deps /mnt/dist/*.whl \
    && /mnt/venv/bin/python -m cyclonedx_py environment --output-reproducible --output-file /opt/coldstream/sbom.cdx.json /opt/coldstream/bin/python

# What every new pod would compile in its first seconds, and the one module for which Triton calls a C compiler: linked against
# an empty library of the driver's name. Debian keeps only the newest version of a package, so one that is named here would be gone some day.
FROM gpu AS kernels
# hadolint ignore=DL3008
RUN --mount=type=secret,id=sources.list \
    test -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
    && if [ -f /run/secrets/sources.list ]; then echo 'Dir::Etc { SourceList "/run/secrets/sources.list"; SourceParts "-"; };' > /etc/apt/apt.conf.d/sources; fi \
    && apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && apt-get clean && rm -rf /var/lib/apt/lists/* \
    && mkdir /driver \
    && gcc -shared -Wl,-soname,libcuda.so.1 -o /driver/libcuda.so.1 -x c /dev/null \
    && ln -s /driver/libcuda.so.1 "${TRITON_LIBCUDA_PATH}/"
COPY image/models models
ARG KERNEL_CAPABILITIES=80,90
RUN python3 -m app.engine.kernels_ahead --driver-module --into /opt/coldstream/kernels --capabilities "${KERNEL_CAPABILITIES}" models/*.json

FROM gpu AS cuda
COPY --from=kernels /opt/coldstream/kernels /opt/coldstream/kernels
ENV COLDSTREAM_KERNELS_DIR=/opt/coldstream/kernels
# Once more, which finds all of it: without a compiler it would fail, where Triton looked for its module by something else.
ARG KERNEL_CAPABILITIES=80,90
RUN --mount=type=bind,from=kernels,source=/driver,target=/driver --mount=type=bind,source=image/models,target=/models \
    LD_LIBRARY_PATH=/driver python3 -m app.engine.kernels_ahead --driver-module --into "${COLDSTREAM_KERNELS_DIR}" --capabilities "${KERNEL_CAPABILITIES}" /models/*.json
ARG REVISION=""
LABEL org.opencontainers.image.revision="${REVISION}"
USER 65532:65532
