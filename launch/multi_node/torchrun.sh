#!/usr/bin/env bash
# A training verb on several hosts through torchrun, as DDP: whole networks in every process. Run the same line on every
# host; only HOST_RANK differs:
#
#   HOST_RANK=0 N_HOSTS=2 PROCESSES_PER_HOST=8 MAIN_HOST=10.0.0.1 \
#     bash launch/multi_node/torchrun.sh oreo --config run.yaml --resume_from_checkpoint latest
#
# MAIN_HOST, MAIN_PORT and PYTHON are those of accelerate.sh. Paths are relative to the root of the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch/multi_node/hosts.sh

exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "$N_HOSTS" --node_rank "$HOST_RANK" --nproc_per_node "$PROCESSES_PER_HOST" \
  --master_addr "$MAIN_HOST" --master_port "$MAIN_PORT" \
  -m posttrain "$@"
