#!/usr/bin/env bash
# Measures on a GPU everything that this project promises of one, in at most nine minutes and without a network: whether
# the machine computes what it should, training steps beside those of others, the h100 profile, the memory and the steps
# of smaller cards, and try-ons. What is cheapest and matters most comes first. Weights are random; speed and memory do
# not depend on them. Writes into a folder, by default benchmarks/gpu_<date>, a .txt and a .json for each part, row by
# row: a run that is cut off loses one row. A part that fails leaves the others; the exit code is 1 then.
#
#   bash benchmarks/gpu.sh [--only PART]... [--any_versions] [folder]
#
# --only: check, step, h100, cards, inference or quantised. --any_versions: with the packages of the machine's own
# python3 (seen to work: PyTorch 2.11 and newer); which they are is written down in any case.
# WHEELS=<folder>: wheels for a machine without an index; SIZE=toy: a rehearsal on a CPU.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
parts=(check step h100 cards inference quantised)
budget=535 # seconds in all, as a part may take 5 more to end

fail() {
    echo "error: $1" >&2
    exit 1
}

only=() any_versions='' folder=''
while [[ $# -gt 0 ]]; do
    case $1 in
    --only)
        [[ " ${parts[*]} " == *" ${2-} "* ]] || fail "--only ${2-} is not known: name one of ${parts[*]}"
        only+=("$2")
        shift
        ;;
    --any_versions) any_versions=yes ;;
    --*) fail "unknown flag $1: give --only PART or --any_versions" ;;
    *)
        [[ -z $folder ]] || fail "two folders were given, $folder and $1: give one"
        folder=$1
        ;;
    esac
    shift
done
size=${SIZE:-full}
[[ $size == full || $size == toy ]] || fail "SIZE=$size is not known: give full or toy"
[[ $size == toy ]] || command -v nvidia-smi >/dev/null || fail "there is no NVIDIA GPU: SIZE=toy rehearses on a CPU"

if [[ -z $any_versions ]]; then
    if [[ -n ${WHEELS-} ]]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=$WHEELS; fi
    python=$(bash "$root/environment.sh" requirements.txt)
else
    python=$(command -v python3) || fail "there is no python3"
    if [[ -n ${WHEELS-} ]]; then # beside the machine's own packages, which stay as they are
        site=$(mktemp -d)
        trap 'rm -rf -- "$site"' EXIT
        "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
        "$python" -m compileall -q -j 0 "$site" || true # files for other versions of Python do not compile
        export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
    fi
fi
folder=${folder:-$root/benchmarks/gpu_$(date +%Y-%m-%d)}
mkdir -p -- "$folder"
folder=$(cd -- "$folder" && pwd)
cd -- "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

{
    if command -v nvidia-smi >/dev/null; then nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader; fi
    "$python" -c 'from benchmarks.variants import versions; print(*map(" ".join, versions().items()), sep="\n")'
} | tee "$folder/machine.txt"

failed=()
# part <name> <seconds> <module> <flags>: what the module prints goes to <folder>/<name>.txt
part() {
    local name=$1 seconds=$2 left=$((budget - SECONDS)) status=0
    shift 2
    if [[ ${#only[@]} -gt 0 && " ${only[*]} " != *" $name "* ]]; then return; fi
    if [[ $left -lt $seconds ]]; then seconds=$left; fi
    if [[ $seconds -le 0 ]]; then
        echo "== $name: left out, as the time is up"
        failed+=("$name")
        return
    fi
    echo "== $name, at most $seconds s: python -m $*"
    timeout --kill-after 5 "$seconds" "$python" -m "$@" 2>&1 | tee "$folder/$name.txt" || status=$?
    echo "== $name: exit code $status, $SECONDS s since the start" | tee -a "$folder/$name.txt"
    if [[ $status -ne 0 ]]; then failed+=("$name"); fi
}

check=(deepfashion_training.train_deepfashion_lora --check)
step=(benchmarks.train_step --size "$size")
tryon=(benchmarks.inference --size "$size")
if [[ $size == toy ]]; then
    check+=(--toy)
    step+=(--steps 1 --warm_up 1)
    tryon+=(--denoising_steps 1)
else
    step+=(--steps 4 --warm_up 3) # the third pass is recorded
fi
# The limits leave room for compiling, 40 to 70 s for each kind of step; what check has compiled, step finds again.
part check 170 "${check[@]}"
part step 150 "${step[@]}" --json "$folder/step.json" --variants compile,reference_cached,none,reference_cached_none
part h100 100 "${step[@]}" --steps 3 --warm_up 2 --json "$folder/h100.json" --variants h100_1x8
part cards 150 "${step[@]}" --json "$folder/cards.json" --variants full_24gb,full_12gb,full_16gb
part inference 110 "${tryon[@]}" --json "$folder/inference.json" --variants compile --pictures 1
part quantised 90 "${step[@]}" --json "$folder/quantised.json" --variants fp8,int8
if [[ ${#failed[@]} -gt 0 ]]; then fail "no complete figures of ${failed[*]}: see $folder"; fi
