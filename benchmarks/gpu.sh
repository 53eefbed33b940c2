#!/usr/bin/env bash
# Measures on a GPU everything that this project promises of one, meant to take ten minutes, without a network: training
# steps, the same held to the memory of smaller cards, and inference. Weights are random; the figures do not depend on
# them. Writes into a folder, by default benchmarks/gpu_<date>: one .json and one .txt per measurement.
#
#   bash benchmarks/gpu.sh [folder]
#
# A folder of wheels for machines without an index: WHEELS=<folder> bash benchmarks/gpu.sh
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -n ${WHEELS-} ]]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=$WHEELS; fi
python=$(bash "$root/environment.sh" requirements.txt)
cd -- "$root"
folder=${1:-benchmarks/gpu_$(date +%Y-%m-%d)}
mkdir -p -- "$folder"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | tee "$folder/gpu.txt"

failed=0
# measure <name> <module> <flags>: one that fails is named at the end and does not stop the others
measure() {
    local name=$1
    shift
    echo "== $name: python -m $*"
    if ! "$python" -m "$@" --json "$folder/$name.json" 2>&1 | tee "$folder/$name.txt"; then
        echo "== $name failed"
        failed=1
    fi
}

step=(benchmarks.train_step --size full --steps 10)
measure step "${step[@]}" --variants none,compile,every_4,compile_full
measure h100_profile "${step[@]}" --rank 128 --variants none,compile --reference no
measure h100_profile_batch_4 "${step[@]}" --rank 128 --batch 4 --variants compile_full --reference no
measure quantised "${step[@]}" --variants fp8,int8,nf4 --reference no
measure card_24_gib "${step[@]}" --memory_limit 25.77 --variants nf4_compile_full,nf4_auto --reference no
measure card_16_gib "${step[@]}" --memory_limit 17.18 --variants nf4_compile_full --reference no
measure card_12_gib "${step[@]}" --memory_limit 12.88 --variants nf4_offload --reference no
measure inference benchmarks.inference --size full --variants none,compile,nf4_compile --pictures 1
exit "$failed"
