#!/usr/bin/env bash
# What to run first on a machine with a GPU: `make gpu`. It builds for that GPU, compares and times
# all kernels, runs the tests that need a GPU, measures the figures and looks for wrong accesses to
# memory, in this order and within nine minutes. A step that fails or takes too long does not stop
# the next ones. Nothing is downloaded: the Python that is used has PyTorch and what the tests need.
#
#   PYTHON=python3      the interpreter
#   GPU_RUNS=runs/gpu   the folder of the results: summary.txt, and what each step printed
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

python=${PYTHON:-python3}
folder=${GPU_RUNS:-runs/gpu}
unset TORCH_CUDA_ARCH_LIST # the architectures of this machine's GPUs alone
export FORCE_CUDA=1 PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}"

gpu=$("$python" -c 'import torch
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), "PyTorch", torch.__version__)')
if [ -z "$gpu" ]; then
  echo "make gpu: there must be a GPU that PyTorch can use (got none with $python)." >&2
  exit 1
fi
mkdir -p "$folder"
summary=$folder/summary.txt
echo "$gpu" | tee "$summary"
failed=0

# step NAME LIMIT COMMAND...: runs a command for LIMIT seconds at most. An interrupt lets it write
# what it has found; what it prints goes to NAME.txt at once.
step() {
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  timeout --signal=INT --kill-after=5 "$limit" "$@" > "$folder/$name.txt" 2>&1 || status=$?
  [ "$status" = 0 ] || failed=1
  report "$name" "exit status $status" "$((SECONDS - start)) of $limit s"
}

report() { printf '%-10s%-18s%s\n' "$@" | tee -a "$summary"; }

# The checks of all kernels, whose problems are small, under a tool of NVIDIA's.
sanitizer() { # TOOL
  step "$1" 45 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 \
    --kernel-regex kns=sketchlayers "$python" -c 'from sketchlayers import _extension
for kernel in _extension.load().cuda_kernels():
    print(kernel.family, kernel.dtype, *kernel.compare(), flush=True)'
}

in_parallel=(--numprocesses auto --maxprocesses 8 --dist worksteal)
mapfile -t tests < <(grep --recursive --files-with-matches --include 'test_*.py' 'mark\.gpu' tests | sort)

step build 150 "$python" setup.py build_ext --inplace
step kernels 60 "$python" -m sketchlayers doctor --device cuda
step tests 125 "$python" -m pytest -m gpu --verbose "${in_parallel[@]}" "${tests[@]}"
step figures 80 "$python" -m sketchlayers bench --device cuda --figures --graphs --seconds 1 \
  --csv "$folder/figures.csv"
if timeout 25 compute-sanitizer "$python" -c 'import torch; torch.zeros(1, device="cuda")' \
  > /dev/null 2>&1; then
  sanitizer memcheck
  sanitizer racecheck
else
  report memcheck "skipped" "compute-sanitizer is not there or does not run here"
fi
exit "$failed"
