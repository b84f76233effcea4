# Sourced by quickstart.sh and test.sh: makes the virtual environment and installs posttrain into it.
#
#   VENV         where the environment lives (default: .venv in the repository)
#   PYTHON       the Python that makes it (default: the first of 3.11, 3.12, 3.13 that is installed and complete)
#   TORCH_INDEX  where the CPU build of torch is looked for when pip's own sources have none

TORCH_INDEX="${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"

say() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

has_cuda() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3 python3.13; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or later with venv was found. Install one (Debian, Ubuntu: apt install python3.11-venv), or set PYTHON=/path/to/python"
}

make_venv() {
  VENV="${VENV:-$PWD/.venv}"
  if [[ -x "$VENV/bin/python" ]]; then
    say "using $VENV"
    return
  fi
  local python
  python="$(find_python)"
  say "making $VENV with $("$python" --version)"
  "$python" -m venv "$VENV"
}

pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check -qq -c constraints.txt "$@"; }

# Without a GPU the default build of torch on Linux would bring gigabytes of CUDA libraries that nothing uses.
install_torch() {
  local pinned
  pinned="$(grep '^torch==' constraints.txt)"
  if "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
    return
  fi
  if has_cuda || [[ "$(uname -s)" != Linux ]]; then
    say "installing $pinned"
    pip_install "$pinned"
    return
  fi
  say "no NVIDIA GPU: installing $pinned, CPU build"
  pip_install --no-deps "$pinned+cpu" 2>/dev/null && return
  say "pip's own sources have no CPU build, trying $TORCH_INDEX"
  pip_install --no-deps --retries 1 --extra-index-url "$TORCH_INDEX" "$pinned+cpu" 2>/dev/null && return
  say "no CPU build within reach: installing the default build (large). Set TORCH_INDEX or PIP_FIND_LINKS to avoid it"
  pip_install "$pinned" || fail "torch could not be installed. Is a package registry reachable? Try: pip download $pinned"
}

# install_posttrain EXTRAS: does nothing when the same set was installed before.
install_posttrain() {
  local extras="$1" stamp wanted
  stamp="$VENV/.installed-${extras//,/-}"
  wanted="$(cat pyproject.toml constraints.txt launch/venv.sh | sha256sum | cut -d' ' -f1) $PWD"
  if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
    say "posttrain[$extras] is installed and unchanged"
    return
  fi
  install_torch
  say "installing posttrain[$extras] (the first time takes a few minutes)"
  pip_install -e ".[$extras]" || return 1
  printf '%s\n' "$wanted" >"$stamp"
}
