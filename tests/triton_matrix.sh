#!/usr/bin/env bash
# Compile every kernel's argument specialisations with several versions of Triton, each in a virtual environment of its own.
# usage: tests/triton_matrix.sh [FOLDER [VERSION ...]]      PYTHON: an interpreter that has torch (default python3)
set -eu
cd "$(dirname "$0")/.."
folder=${1:-.triton}
versions=("${@:2}")
[ ${#versions[@]} -gt 0 ] || versions=(3.6.0 3.7.1 3.9.0)
python=${PYTHON:-python3}
packages=$("$python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent.parent)')
for version in "${versions[@]}"; do
    own="$folder/triton-$version"
    if [ ! -x "$own/bin/python" ]; then
        "$python" -m venv "$own"
        "$own/bin/python" -m pip install --quiet --no-deps "triton==$version"
        # everything else from the interpreter given; what is installed here comes first
        "$own/bin/python" -c "import site, sys; open(site.getsitepackages()[0] + '/shared.pth', 'w').write(sys.argv[1])" "$packages"
    fi
    found=$(env -u TRITON_INTERPRET PYTHONPATH="$PWD" "$own/bin/python" -W error -c 'import triton; print(triton.__version__)')
    [ "$found" = "$version" ] || { echo "triton: expected $version in $own, got $found; remove the folder"; exit 1; }
    for options in "--stage ttir --specialisations" "--stage cubin"; do
        # shellcheck disable=SC2086
        rows=$(env -u TRITON_INTERPRET PYTHONPATH="$PWD" "$own/bin/python" -W error -m tests.triton_ahead $options | wc -l)
        echo "triton $version: $rows kernels compiled ($options)"
    done
done
