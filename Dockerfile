# The GPU setup as an image. It has not been built yet; what has run on a GPU: docs/GPU.md.
#   docker build -t openrlhf-qs .
#   docker run --gpus all --shm-size 16g -v $PWD/runs:/openrlhf-qs/runs -e GPUS=8 -e POLICY=Qwen/Qwen3-4B openrlhf-qs
# CUDA is the version that the torch below was built for: flash-attn is compiled against both.
ARG CUDA=13.0.2
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv g++ git \
    && rm -rf /var/lib/apt/lists/*
ENV VIRTUAL_ENV=/opt/venv
ENV PATH=$VIRTUAL_ENV/bin:$PATH
RUN python3 -m venv "$VIRTUAL_ENV"

# What takes long and seldom changes, in a layer of its own; the rest as the recipes install it.
RUN pip install --no-cache-dir torch==2.13.0 packaging ninja psutil wheel setuptools \
    && pip install --no-cache-dir --no-build-isolation flash-attn==2.8.3
WORKDIR /openrlhf-qs
COPY . .
RUN GPUS=1 bash -euo pipefail -c 'source recipes/common.sh; set_up'

CMD ["bash", "recipes/grpo_garm.sh"]
