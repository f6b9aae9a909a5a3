#!/usr/bin/env bash
# Measure and test everything that needs a CUDA GPU, in at most nine minutes:
#
#     benchmarks/gpu.sh [--dry-run] [OUT]
#
# OUT (default: runs/gpu) receives a log and the exit status of each step, and the rows of the
# benchmark as they are measured. A step that fails or runs out of time does not stop the others.
# --dry-run takes the same steps on the CPU, with little data. PYTHON names the interpreter; ffcv
# and the other requirements must be importable there (PYTHONPATH).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
tests=(-v --durations=5)
if [[ ${1:-} == --dry-run ]]; then
    shift
    export DP4TL_DRY_RUN=1 CUDA_VISIBLE_DEVICES=
    tests=(--collect-only -q)
fi
out=${1:-runs/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
export PYTHONUNBUFFERED=1
failed=0

# step NAME SECONDS COMMAND...: run a command with a time limit; keep its output and exit status.
step() {
    local name=$1 seconds=$2 began=$SECONDS status
    shift 2
    echo "== $name (at most $seconds s)"
    timeout --kill-after=5 "$seconds" "$@" > "$out/$name.out" 2> "$out/$name.log"
    status=$?
    echo "$name: exit status $status after $((SECONDS - began)) s" | tee -a "$out/steps.txt"
    tail -n 3 "$out/$name.out"
    if ((status)); then
        failed=1
        tail -n 15 "$out/$name.log"
    fi
    return $status
}

: > "$out/steps.txt"
step machine 30 "$python" -c "
import os, torch, ffcv, tyro, lazy_loader, cv2, numba, skimage, sklearn
from dp4tl_ffcv.utils import environment
print(environment())
if not torch.cuda.is_available() and 'DP4TL_DRY_RUN' not in os.environ:
    raise SystemExit('there is no CUDA GPU. --dry-run takes the same steps on the CPU.')" || exit 1
# gpu_limit_share: PrunedLoader, compacted, raw and stock ffcv against a GPU fed with pixels from its
# own memory. stall_share: the time that a step waits. guard_cost: pinned buffers.
step end_to_end 380 "$python" -m benchmarks.end_to_end --quick --data "$data" \
    --out "$out/end_to_end_gpu.jsonl" \
    --only gpu_limit_share images_per_second stall_share guard_cost
# Only these files, because others need the project to be installed.
mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | sort)
step tests 120 "$python" -m pytest -p no:cacheprovider -n0 -m gpu "${tests[@]}" "${files[@]}"
exit $failed
