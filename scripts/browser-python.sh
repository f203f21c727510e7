#!/usr/bin/env bash
# Prints the python that runs `tests/browser/pages.py`: Playwright and axe-core. The browser is the system's own Chromium.
set -euo pipefail

cd "$(dirname "$0")/.."
scripts/system-packages.sh chromium:chromium >&2
scripts/python-venv.sh browser tests/browser/requirements.txt
