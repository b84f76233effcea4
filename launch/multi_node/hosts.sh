# Sourced by accelerate.sh and torchrun.sh: which host this is.
: "${N_HOSTS:?set N_HOSTS to the number of hosts}"
: "${HOST_RANK:?set HOST_RANK to this host: 0 on MAIN_HOST, 1, 2, ... on the others}"
: "${PROCESSES_PER_HOST:?set PROCESSES_PER_HOST to the number of GPUs of a host}"
: "${MAIN_HOST:?set MAIN_HOST to the name or address of the host with HOST_RANK 0}"
MAIN_PORT="${MAIN_PORT:-29500}"
