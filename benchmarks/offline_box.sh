#!/usr/bin/env bash
# Takes ns_ray to a GPU box that has torch and Python, but no network.
#
#   benchmarks/offline_box.sh pack FOLDER [3.12]   here: FOLDER/part-00, part-01, ..., 60 MB each
#   bash FOLDER/run.sh [REPORTS]                   there: installs, runs tests/test_gpu.py and
#                                                  benchmarks/gpu.py, writes into REPORTS
#
# Packed are this checkout as committed, and wheels of what is installed beside it here, for
# Linux on x86_64 and the Python named; torch and what belongs to it stay out, and so does what no GPU
# test needs. There, all is put into a virtual environment that sees the box's own torch.
set -euo pipefail

PARTS=60m
BOXES_OWN='^(torch|torchvision|triton|nvidia-.*|cuda-.*|ns[-_]ray|pip|setuptools|wheel)$'
NOT_NEEDED='^(openvino.*|onnx.*|opencv-.*|llvmlite|numba|cleanlab|daft|playwright|axe-.*|litserve|mypy.*|ruff|hadolint.*|moto|boto.*|jsonschema[-_]rs|schemathesis|mkdocs.*|mlflow.*|wandb|ipykernel|jupyter.*|nbconvert|debugpy|datamodel-code-generator|import-linter|deptry|efficientnet-lite[12].*|tensorboard.*|types-.*)$'

pack() {
  local folder=$1 version=${2:-3.12} python=${PYTHON:-python}
  mkdir -p "$folder/box/wheels"
  git archive --format=tar HEAD > "$folder/box/ns_ray.tar"
  local platforms=()
  for glibc in 2_17 2_24 2_27 2_28 2_31 2_34; do
    platforms+=(--platform "manylinux_${glibc}_x86_64")
  done
  platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)
  local wanted
  mapfile -t wanted < <("$python" -m pip list --format=freeze --exclude-editable |
    awk -F= -v own="$BOXES_OWN" -v unneeded="$NOT_NEEDED" \
      '{ name = tolower($1) } name !~ own && name !~ unneeded')
  fetch() {
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
      --python-version "$version" "${platforms[@]}" --dest "$folder/box/wheels" "$@"
  }
  if ! fetch "${wanted[@]}"; then
    for one in "${wanted[@]}"; do
      fetch "$one" || echo "$one has no wheel for Python $version: left out"
    done
  fi
  cat > "$folder/run.sh" <<'BOX'
#!/usr/bin/env bash
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd) reports=${1:-reports}
mkdir -p "$reports" && reports=$(cd "$reports" && pwd)
work=$(mktemp -d) && cd "$work"
cat "$here"/part-* | tar x && mkdir code && tar x -C code -f box/ns_ray.tar
python3 -m venv --system-site-packages venv
venv/bin/pip install --quiet --no-index --no-deps --no-warn-conflicts box/wheels/*.whl
cd code && export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} RAY_AUTH_MODE=disabled
../venv/bin/python -m pytest tests/test_gpu.py -o filterwarnings=default -p no:cacheprovider |& tee "$reports/tests.txt"
../venv/bin/python -W ignore benchmarks/gpu.py --out "$reports/gpu.json" |& tee "$reports/gpu.txt"
BOX
  tar c -C "$folder" box | split -b "$PARTS" -d - "$folder/part-"
  rm -r "$folder/box"
  du -h "$folder"/*
}

case ${1:-} in
  pack) pack "${@:2}" ;;
  *) sed -n '2,12s/^# \?//p' "$0"; exit 2 ;;
esac
