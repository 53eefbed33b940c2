#!/usr/bin/env bash
# Trains a try-on LoRA: picks a profile, checks what can be checked at once, and runs accelerate on the driver.
# Owns processes, environment and exit code; every hyper-parameter is the driver's (tryon/config.py).
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'USAGE'
Usage: bash train_deepfashion_lora.sh [--quick-test | --h100] [flags of the driver]

  --quick-test   a hundred samples, fifty steps; without a GPU on the embedded toy model
  (nothing)      the full profile: all samples, 8000 steps
  --h100         the full profile for an 80 GB GPU: larger LoRA, larger batches

Every other flag goes to the driver and wins over the profile; --help prints them all.
RUNS_DIR moves the folder that runs are kept in.
USAGE
}

profile=full
flags=()
for argument in "$@"; do
    case $argument in
        --quick-test) profile=quick_test ;;
        --h100) profile=h100 ;;
        *) flags+=("$argument") ;;
    esac
done

python=$(bash "$root/environment.sh" requirements.txt)
# The project's packages are found wherever the script is called from, and nothing in the caller's folder is taken
# for one of them.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1

for argument in "$@"; do
    if [[ $argument == --help || $argument == -h ]]; then
        usage
        exec "$python" -m deepfashion_training.preflight --help
    fi
done

# Flags, data path and device; a refusal is one sentence and leaves no run folder behind.
checked=$("$python" -m deepfashion_training.preflight --profile "$profile" "${flags[@]}")
mapfile -t checked <<<"$checked"
run=${checked[0]} processes=${checked[1]} device=${checked[2]} precision=${checked[3]}

launch=(--config_file "$root/deepfashion_training/accelerate.yaml" --num_processes "$processes" --num_machines 1 --main_process_port 0 --dynamo_backend no
    --mixed_precision "$precision" --num_cpu_threads_per_process $((($(nproc) + processes - 1) / processes)))
if [[ $processes -gt 1 ]]; then
    launch+=(--multi_gpu) # without it accelerate starts a single process; without a GPU the processes talk by gloo
elif [[ $device == cpu ]]; then
    launch+=(--cpu)
fi

export TRAIN_STATUS_DIR
TRAIN_STATUS_DIR=$(mktemp -d)
trap 'rm -rf -- "$TRAIN_STATUS_DIR"' EXIT
if [[ -t 1 ]]; then export TRAIN_TERMINAL=1; fi

# Passes a signal on to the driver's processes. Before they have said that they listen nothing can be lost: all ends.
received=
launcher=
# shellcheck disable=SC2329 # called by the traps
pass_on() {
    received=$1
    if [[ -z $launcher ]]; then exit $((128 + received)); fi # nothing has been started
    local pid listening=
    for pid in "$TRAIN_STATUS_DIR"/*.pid; do
        [[ -e $pid ]] || continue
        pid=${pid##*/}
        kill -s "$2" "${pid%.pid}" 2>/dev/null || true
        listening=yes
    done
    if [[ -z $listening ]]; then kill -TERM -- "-$launcher" 2>/dev/null || true; fi
}
trap 'pass_on 1 TERM' HUP
trap 'pass_on 2 INT' INT
trap 'pass_on 10 USR1' USR1
trap 'pass_on 15 TERM' TERM

# A signal ends `wait` before the process has ended, so it is waited for again.
wait_for() {
    local status=0
    while kill -0 "$1" 2>/dev/null; do
        wait "$1" && status=0 || status=$?
    done
    return "$status"
}

# The driver's processes write into a pipe that is copied to terminal and train.log. What accelerate itself says, mostly
# tracebacks of its own, is shown only where the driver did not get as far as speaking for itself.
mkfifo "$TRAIN_STATUS_DIR/output"
set -m # process groups of their own: Ctrl-C reaches this script alone, which passes it on
"$python" -m deepfashion_training.log_output "$run/train.log" <"$TRAIN_STATUS_DIR/output" &
logger=$!
exec {output}>"$TRAIN_STATUS_DIR/output" # held open, or the copy would end before the driver begins
"$python" -m accelerate.commands.launch --quiet "${launch[@]}" -m deepfashion_training.train_deepfashion_lora \
    --profile "$profile" "${flags[@]}" --output_dir "$run" >"$TRAIN_STATUS_DIR/accelerate.log" 2>&1 </dev/null {output}>&- &
launcher=$!
set +m

status=0
wait_for "$launcher" || status=$?
exec {output}>&-
wait_for "$logger" || true
if [[ $status -ne 0 && -n $received ]]; then
    status=$((128 + received))
elif [[ -f $TRAIN_STATUS_DIR/exit_code ]]; then
    status=$(<"$TRAIN_STATUS_DIR/exit_code")
elif [[ $status -ne 0 ]] && compgen -G "$TRAIN_STATUS_DIR/*.pid" >/dev/null; then
    echo "error: a training process was killed from outside, most likely for lack of memory" | tee -a "$run/train.log" >&2
elif [[ $status -ne 0 ]]; then
    tee -a "$run/train.log" <"$TRAIN_STATUS_DIR/accelerate.log" >&2
fi
exit "$status"
