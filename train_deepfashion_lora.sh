#!/usr/bin/env bash
# Trains a try-on LoRA: finds a Python that has the packages, and hands over to deepfashion_training/launch.py.
# `--help` lists the flags, the profiles among them, which are the driver's (tryon/config.py, tryon/profiles.py).
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=$(bash "$root/environment.sh" requirements.txt)
# The project's packages are found wherever the script is called from, and nothing in the caller's folder is taken
# for one of them.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
exec "$python" -m deepfashion_training.launch "$@"
