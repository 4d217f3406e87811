# uld on the CPU:   docker build -t uld .   docker run --rm -v "$PWD:/work" uld train --target …
FROM python:3.11-slim

# An index of PyTorch's builds without CUDA, which are a tenth as large. Empty: PyPI's build, as on a machine with a GPU.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

COPY . /src
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        --constraint /src/requirements.lock "/src[augment,documents]" \
    && rm -rf /src \
    && useradd --create-home --uid 1000 uld \
    && install --directory --owner uld --group uld /work

USER uld
# What a run writes and reads belongs into a folder of yours, mounted here; models from the Hub are kept in /home/uld/.cache.
WORKDIR /work
ENTRYPOINT ["uld"]
CMD ["--help"]
