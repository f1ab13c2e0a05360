# The environment of a CUDA card, from the pins of requirements.txt. Written, not run; docs/cloud.md says how it is meant.
#
#   docker build -t poweropd .
#   docker run --rm --init --gpus all -v poweropd-cache:/root/.cache -v "$PWD/runs:/work/runs" poweropd train --config qwen3-0.6b-4b
FROM python:3.11-slim-bookworm

# Triton compiles what launches its kernels: a C compiler, and Python's headers, which this image has.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility PYTHONUNBUFFERED=1

# Several GB that change with the pins alone come before the package, which changes often.
WORKDIR /src
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY poweropd_lite poweropd_lite
RUN pip install --no-cache-dir --no-deps .

WORKDIR /work
ENTRYPOINT ["poweropd"]
CMD ["doctor", "--env"]
