# jacrec on a CPU, as an ordinary user, with a read-only root file system:
#
#   docker build -t jacrec .
#   docker run --rm --read-only --tmpfs /tmp --user "$(id -u):$(id -g)" -v "$PWD:/data" jacrec demo --quick
#
# Runs, data and compiled kernels are kept in /data. Kernels are compiled at their first use, for the processor of the machine.
FROM python:3.11-slim

# Mesa, for videos without a display
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libegl1 libegl-mesa0 libgl1-mesa-dri \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /source
COPY constraints.txt ./
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY jacrec ./jacrec
COPY kernels ./kernels
RUN pip install --no-cache-dir -c constraints.txt ".[video]" && rm -rf /source

ENV HOME=/data \
    JACREC_DATA=/data/datasets \
    MINARI_DATASETS_PATH=/data/minari \
    NUMBA_CACHE_DIR=/data/.cache/numba \
    MPLCONFIGDIR=/tmp/matplotlib \
    MUJOCO_GL=egl \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /data
USER 1000:1000
ENTRYPOINT ["jacrec"]
CMD ["--help"]
