# weanalysis with its dashboard on port 8501.
#
#   docker build -t weanalysis .                      CPU
#   docker build -t weanalysis:cuda \
#     --build-arg BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04 \
#     --build-arg TORCH_INDEX=https://pypi.org/simple .
#
# PyPI's build of torch brings its own CUDA 13 libraries, so that the small "base" image suffices; a driver for CUDA 13
# and the NVIDIA Container Toolkit are needed on the host.

ARG BASE_IMAGE=python:3.11-slim-bookworm

# ---- Python 3.11 or newer, from the image or from its distribution
FROM ${BASE_IMAGE} AS base
# hadolint ignore=DL3008
RUN if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then \
      apt-get update \
      && apt-get install -y --no-install-recommends python3 python3-venv \
      && rm -rf /var/lib/apt/lists/*; \
    fi

# ---- everything that is installed, in one folder
FROM base AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/weanalysis
ENV PATH=/opt/weanalysis/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# Both from one index, so that torchvision's operators fit; what they need comes from PyPI below.
RUN pip install --no-deps --constraint constraints.txt --index-url "${TORCH_INDEX}" torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY app ./app
COPY weanalysis ./weanalysis
RUN pip install --constraint constraints.txt ".[cluster,hf]"

# ---- what runs
FROM base
COPY --from=build /opt/weanalysis /opt/weanalysis
ENV PATH=/opt/weanalysis/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    WEANALYSIS_CACHE=/cache
RUN useradd --create-home --uid 10001 weanalysis \
    && mkdir /cache \
    && chown weanalysis:weanalysis /cache
USER 10001:10001
WORKDIR /home/weanalysis
VOLUME /cache
EXPOSE 8501
# It tells whether the dashboard answers, so in a container that runs another command it says "unhealthy".
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=5)"]
ENTRYPOINT ["weanalysis"]
# A container's 127.0.0.1 cannot be reached from outside of it: listen everywhere, and publish the port with care.
CMD ["dashboard", "--address", "0.0.0.0", "--no-open"]
