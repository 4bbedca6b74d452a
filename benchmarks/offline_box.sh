#!/usr/bin/env bash
# Takes ns_ray to a GPU box that has torch and Python, but no network.
#
#   benchmarks/offline_box.sh pack FOLDER [3.12]   here: FOLDER/part-00, part-01, ..., 60 MB each
#   bash FOLDER/run.sh [REPORTS]                   there: installs, runs `pytest -m gpu` and
#                                                  benchmarks/gpu.py, writes into REPORTS
#
# Packed are this checkout as committed, and wheels of what is installed beside it here, for
# Linux on x86_64 and the Python named; torch and what belongs to it stay out. There, all is put into
# a virtual environment that sees the box's own torch.
set -euo pipefail

PARTS=60m
BOXES_OWN='^(torch|torchvision|triton|nvidia-.*|cuda-.*|ns[-_]ray|pip|setuptools|wheel)$'

pack() {
  local folder=$1 version=${2:-3.12} python=${PYTHON:-python}
  mkdir -p "$folder/box/wheels"
  git archive --format=tar HEAD > "$folder/box/ns_ray.tar"
  local platforms=()
  for glibc in 2_17 2_24 2_27 2_28 2_31 2_34; do
    platforms+=(--platform "manylinux_${glibc}_x86_64")
  done
  platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)
  "$python" -m pip list --format=freeze --exclude-editable |
    while IFS='=' read -r name _ release; do
      [[ $name =~ $BOXES_OWN ]] && continue
      "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
        --only-binary=:all: --python-version "$version" "${platforms[@]}" \
        --dest "$folder/box/wheels" "$name==$release" ||
        echo "$name $release has no wheel for Python $version: left out"
    done
  cat > "$folder/run.sh" <<'BOX'
#!/usr/bin/env bash
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd) reports=${1:-reports}
mkdir -p "$reports" && reports=$(cd "$reports" && pwd)
work=$(mktemp -d) && cd "$work"
cat "$here"/part-* | tar x && mkdir code && tar x -C code -f box/ns_ray.tar
python3 -m venv --system-site-packages venv
venv/bin/pip install --quiet --no-index --no-deps --no-warn-conflicts box/wheels/*.whl
cd code && export PYTHONPATH=$PWD RAY_AUTH_MODE=disabled
../venv/bin/python -m pytest -m gpu -o filterwarnings=default -p no:cacheprovider |& tee "$reports/tests.txt"
../venv/bin/python -W ignore benchmarks/gpu.py --out "$reports/gpu.json" |& tee "$reports/gpu.txt"
BOX
  tar c -C "$folder" box | split -b "$PARTS" -d - "$folder/part-"
  rm -r "$folder/box"
  du -h "$folder"/*
}

case ${1:-} in
  pack) pack "${@:2}" ;;
  *) sed -n '2,11s/^# \?//p' "$0"; exit 2 ;;
esac
