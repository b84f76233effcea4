#!/usr/bin/env bash
# Sets up an environment of its own and runs `posttrain serve`. Run again, it reuses what is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
usage: bash launch/serve.sh --model POLICY [--value_model VALUE] [--KEY VALUE ...]

Makes .venv, installs posttrain, then runs `posttrain serve` with the given keys: an OpenAI-compatible server whose
answers can be searched for by value, with a page that draws the search at http://127.0.0.1:8000/.
POLICY and VALUE are folders or Hub ids. Paths are relative to the repository.
For the keys: .venv/bin/posttrain serve --help

To be reached from other machines it needs --host 0.0.0.0 and a key, in POSTTRAIN_API_KEY or --api_key_file FILE.

Environment: POSTTRAIN_API_KEY, VENV (default .venv), PYTHON, TORCH_INDEX.
TEXT
}

if [[ "${1:-}" == "-h" || "${1:-}" == "--help" ]]; then
  usage
  exit 0
fi
if [[ $# -eq 0 ]]; then
  usage >&2
  exit 2
fi

source launch/venv.sh

make_venv
install_posttrain serve || fail "the install failed; pip's reason stands above"

export TOKENIZERS_PARALLELISM=false

say "posttrain serve"
exec "$VENV/bin/posttrain" serve "$@"
