#!/usr/bin/env bash
# Trains a try-on LoRA: checks what can be checked at once, and runs accelerate on the driver. `--help` lists the flags.
# Owns processes, environment and exit code; every flag, the profiles among them, is the driver's (tryon/config.py).
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=$(bash "$root/environment.sh" requirements.txt)
# The project's packages are found wherever the script is called from, and nothing in the caller's folder is taken
# for one of them.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1

for argument in "$@"; do
    if [[ $argument == --help || $argument == -h ]]; then exec "$python" -m deepfashion_training.preflight --help; fi
    if [[ $argument == --plan || $argument == --check ]]; then exec "$python" -m deepfashion_training.train_deepfashion_lora "$@"; fi
done

# Flags, data path and device; a refusal is one sentence and leaves no run folder behind. From here to the start of the
# processes there are only builtins: a signal that comes while bash waits for a command can be lost.
checked=$("$python" -m deepfashion_training.preflight "$@")
mapfile -t checked <<<"$checked"
export TRAIN_STATUS_DIR=${checked[0]}
run=${checked[1]} processes=${checked[2]} threads=${checked[3]} device=${checked[4]} precision=${checked[5]}
trap 'rm -rf -- "$TRAIN_STATUS_DIR"' EXIT

launch=(--config_file "$root/deepfashion_training/accelerate.yaml" --num_processes "$processes" --num_machines 1 --main_process_port 0 --dynamo_backend no
    --mixed_precision "$precision" --num_cpu_threads_per_process "$threads")
if [[ $processes -gt 1 ]]; then
    launch+=(--multi_gpu) # without it accelerate starts a single process; without a GPU the processes talk by gloo
elif [[ $device == cpu ]]; then
    launch+=(--cpu)
fi
if [[ -t 1 ]]; then export TRAIN_TERMINAL=1; fi

# Passes a signal on to the driver's processes. Before any of them has said that it listens nothing can be lost: all
# ends. One that comes before everything is started is passed on when it is.
received=
signal=
launcher=
pass_on() {
    received=$1 signal=$2
    if [[ -z $launcher ]]; then return 0; fi # a bare return would be taken for a failure of the trap, and end the script
    local pid listening=
    for pid in "$TRAIN_STATUS_DIR"/*.pid; do
        [[ -e $pid ]] || continue
        pid=${pid##*/}
        kill -s "$signal" "${pid%.pid}" 2>/dev/null || true
        listening=yes
    done
    if [[ -n $listening ]]; then return 0; fi
    # A process that has just been forked still has this script's traps, and would lose the signal.
    while [[ ! -e $TRAIN_STATUS_DIR/started ]] && kill -0 "$launcher" 2>/dev/null; do sleep 0.01; done
    kill -TERM -- "-$launcher" 2>/dev/null || true
}
trap 'pass_on 1 TERM' HUP
trap 'pass_on 2 INT' INT
trap 'pass_on 10 USR1' USR1
trap 'pass_on 15 TERM' TERM

# A signal ends `wait` before the process has ended, so it is waited for again.
wait_for() {
    local status
    while true; do
        wait "$1" && status=0 || status=$?
        kill -0 "$1" 2>/dev/null || return "$status"
    done
}

# The driver's processes write into a pipe that is copied to terminal and train.log. What accelerate itself says, mostly
# tracebacks of its own, is shown only where the driver did not get as far as speaking for itself.
exec {output}<>"$TRAIN_STATUS_DIR/output" # both ends: opening one alone waits for the other; and held, or it would end
set -m                                    # process groups of their own: Ctrl-C reaches this script alone
"$python" -m deepfashion_training.log_output "$run/train.log" <"$TRAIN_STATUS_DIR/output" {output}>&- &
logger=$!
{
    : >"$TRAIN_STATUS_DIR/started"
    exec "$python" -m accelerate.commands.launch --quiet "${launch[@]}" -m deepfashion_training.train_deepfashion_lora \
        "$@" --output_dir "$run" >"$TRAIN_STATUS_DIR/accelerate.log" 2>&1 </dev/null {output}>&-
} &
launcher=$!
set +m
if [[ -n $received ]]; then pass_on "$received" "$signal"; fi

status=0
wait_for "$launcher" || status=$?
exec {output}>&-
wait_for "$logger" || true
listened=$(compgen -G "$TRAIN_STATUS_DIR/*.pid" || true)
left=
if [[ -f $TRAIN_STATUS_DIR/exit_code ]]; then left=$(<"$TRAIN_STATUS_DIR/exit_code"); fi
if [[ $status -ne 0 && -n $received && (-z $left || $left -gt 128) ]]; then # else an error came between
    status=$((128 + received))
    if [[ -z $listened ]]; then echo "stopped by SIG$signal before the training began" | tee -a "$run/train.log" >&2; fi
elif [[ $processes -gt 1 && $left == 143 ]]; then # accelerate ends so what is left where one process was killed
    echo "error: a training process was killed from outside, and the others stopped with it" | tee -a "$run/train.log" >&2
    status=1
elif [[ -n $left ]]; then
    status=$left
elif [[ $status -ne 0 && -n $listened ]]; then
    echo "error: a training process was killed from outside, most likely for lack of memory" | tee -a "$run/train.log" >&2
elif [[ $status -ne 0 ]]; then
    tee -a "$run/train.log" <"$TRAIN_STATUS_DIR/accelerate.log" >&2
fi
exit "$status"
