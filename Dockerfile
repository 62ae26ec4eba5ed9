# wmjax with everything that ./setup.sh installs, for the CPU or, with MODE=cuda, for NVIDIA GPUs (CUDA comes with JAX;
# the host needs the driver and the NVIDIA Container Toolkit). The cache is a volume: mount it to keep runs.
#
#     docker build -t wmjax .                          docker run -v wmjax-cache:/cache wmjax train --config e2_flow
#     docker build -t wmjax --build-arg MODE=cuda .    docker run --gpus all -v wmjax-cache:/cache wmjax doctor
FROM python:3.11-slim-bookworm

# A mode of setup.sh.
ARG MODE=sim
ENV PIP_NO_CACHE_DIR=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    WMJAX_CACHE=/cache

WORKDIR /wmjax
COPY . .
RUN ./setup.sh "${MODE}" && rm -rf /var/lib/apt/lists/*
RUN .venv/bin/python -m wmjax --help

VOLUME /cache
ENTRYPOINT ["/wmjax/.venv/bin/python", "-m", "wmjax"]
CMD ["--help"]
