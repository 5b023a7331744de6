#!/bin/sh
# Usage: setup.sh STAMP [PYTHON]. Finds a Python that can build .venv and hands
# over to install.py.
set -eu

stamp=$1
chosen=${2:-}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' \
        >/dev/null 2>&1
}

if [ -n "$chosen" ]; then
    candidates=$chosen
else
    candidates='python3.11 python3.12 python3.10 python3 python'
fi
for candidate in $candidates; do
    if is_supported "$candidate"; then
        exec "$candidate" "$(dirname "$0")/install.py" "$stamp"
    fi
done
echo "[setup] No Python from 3.10 to 3.12 found (tried: $candidates);" \
    "install one, or name it: make setup PYTHON=/path/to/python3.11" >&2
exit 1
