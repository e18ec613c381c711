# One image for serving, training and the store's bulk commands, in two variants:
#
#   docker build -t tim4rec:cpu .
#   docker build -t tim4rec:cuda --build-arg VARIANT=cuda .
#
#   docker run --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -e TIM4REC_ALLOW_OPEN=true \
#       -v "$PWD/artefacts/ml-100k:/artefact:ro" -v tim4rec:/data tim4rec:cpu
#   docker run -v "$PWD:/work" -w /work --user "$(id -u):$(id -g)" tim4rec:cpu train shop.csv
#
# Without TIM4REC_REDIS_URL the store is the embedded one, in /data. It listens on all addresses of the
# container, so it wants keys (TIM4REC_API_KEYS), or to be told that its port is published safely.

ARG VARIANT=cpu
# By digest: see deploy/images.env.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /build
COPY pyproject.toml constraints.txt deploy/cpu.lock ./
# The package's own lists, so that its dependencies are a layer that its source does not change.
RUN python -c "import tomllib; \
        project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        open('requirements.txt', 'w').write('\n'.join(project['dependencies'])); \
        extras = project['optional-dependencies']; \
        [open(f'{name}.txt', 'w').write('\n'.join(extras[name])) for name in ('index', 's3', 'gpu')]"

FROM builder AS packages-cpu
# PyPI's torch for Linux is the CUDA build.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)" \
    && pip install --no-deps --require-hashes -r cpu.lock

FROM builder AS packages-cuda
RUN pip install -c constraints.txt "$(grep '^torch==' constraints.txt)" -r requirements.txt \
        -r s3.txt
# mamba-ssm is published as source. Its Triton kernels are Python files, compiled where they run;
# the CUDA extension beside them is not used, so it is left out.
RUN pip install -c constraints.txt ninja packaging setuptools wheel \
    && MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE \
        pip install --no-build-isolation -c constraints.txt -r gpu.txt

# hadolint ignore=DL3006
FROM packages-${VARIANT} AS packages

# Built by the setuptools that is installed there: an environment of its own would get the newest.
FROM packages AS application
WORKDIR /build
COPY README.md ./
COPY model model
COPY training training
COPY service service
COPY learning learning
COPY cli cli
COPY client client
RUN pip install --no-deps --no-build-isolation --no-cache-dir --prefix /application .

FROM ${PYTHON_IMAGE}
ARG VARIANT
# tini: signals arrive from the first moment on, and orphans are reaped. Triton, in the CUDA
# variant, compiles the launchers of its kernels in C where it runs.
# Debian keeps only the newest version of a package, so none can be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && if [ "${VARIANT}" = cuda ]; then \
        apt-get install -y --no-install-recommends gcc libc6-dev; fi \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp tim4rec \
    && install -d -o tim4rec -g tim4rec /data /data/models /artefacts
COPY --from=packages /venv /venv
COPY --from=application /application /venv

# Everything that is written goes to /data, /artefacts and /tmp: the root can be read-only.
ENV PATH=/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TIM4REC_HOST=0.0.0.0 \
    TIM4REC_DATA_DIR=/data
WORKDIR /data
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --retries=3 \
    CMD ["tim4rec", "health"]
ENTRYPOINT ["tini", "--", "tim4rec"]
CMD ["serve", "/artefact"]

ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="tim4rec" \
      org.opencontainers.image.description="Online recommendation on TiM4Rec" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
