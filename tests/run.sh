#!/usr/bin/env bash
# Runs the tests, in .venv or an active environment that has requirements-dev.txt: all but the slow ones; with --slow
# those, with --faults the long fault run, which takes a quarter of an hour, with --gpu the tests that need a GPU, which
# fail where there is none. Other arguments go to pytest.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/environment.sh" requirements-dev.txt)
cd -- "$root"
which="not faults and not slow"
case ${1-} in
--faults)
    shift
    exec "$python" -m pytest tests/faults -m faults "$@"
    ;;
--gpu)
    shift
    # One process: each would import everything again, and take memory of the GPU.
    TRYON_GPU_TESTS=1 exec "$python" -m pytest -m gpu "$@"
    ;;
--slow)
    shift
    which=slow
    ;;
esac
# Two files at a time, each with one thread: most of the time goes into starting the real commands, which use one core.
export OMP_NUM_THREADS=1
exec "$python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "$which" "$@"
