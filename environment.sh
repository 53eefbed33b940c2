#!/usr/bin/env bash
# Prints the path of a Python that has everything a requirements file pins: the active one where it does, else the one
# in .venv, which is made, or completed, on the first call. What it does meanwhile goes to stderr.
#
#   python=$(bash environment.sh requirements.txt)
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
requirements=$root/${1:?name a requirements file}
venv=$root/.venv

fail() {
    echo "error: $1" >&2
    exit 1
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Whether a Python has exactly the versions that the file, and those it includes, pin. Imports nothing heavy.
satisfies() {
    "$1" - "$requirements" <<'PYTHON' 2>/dev/null
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def pins(path):
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            yield from pins(path.parent / line[3:])
        elif line:
            yield line.split("==")


try:
    missing = [name for name, pin in pins(Path(sys.argv[1])) if version(name).split("+")[0] != pin]
except PackageNotFoundError:
    missing = [True]
sys.exit(bool(missing))
PYTHON
}

for installed in python python3 "$venv/bin/python"; do
    if is_new_enough "$installed" && satisfies "$installed"; then
        command -v "$installed"
        exit
    fi
done

base=
for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if is_new_enough "$candidate"; then
        base=$candidate
        break
    fi
done
[[ -n $base ]] || fail "Python 3.11 or newer is needed and $(python3 --version 2>&1 || true) was found: install a newer one"

echo "Installing the packages of $(basename -- "$requirements") into $venv (once; a few minutes, about 2 GB without CUDA)." >&2
"$base" -m venv "$venv" >&2 || fail "$base cannot make a virtual environment: install its venv package (python3-venv on Debian)"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check -r "$requirements" >&2 ||
    fail "the packages could not be installed: see pip's message above"
echo "$venv/bin/python"
