#!/usr/bin/env bash
# Runs the tests, in .venv or an active environment that has requirements-dev.txt. Arguments go to pytest.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/environment.sh" requirements-dev.txt)
cd -- "$root"
exec "$python" -m pytest "$@"
