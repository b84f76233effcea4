#!/usr/bin/env bash
# A training verb on several hosts through accelerate. Run the same line on every host; only HOST_RANK differs:
#
#   HOST_RANK=0 N_HOSTS=2 PROCESSES_PER_HOST=8 MAIN_HOST=10.0.0.1 \
#     bash launch/multi_node/accelerate.sh oreo --config run.yaml --resume_from_checkpoint latest
#
#   MAIN_HOST           name or address of the host with HOST_RANK 0, as the others reach it
#   MAIN_PORT           a free port there (default 29500)
#   ENGINE              a file of launch/accelerate: ddp, zero1, zero2, zero3, fsdp2 (default zero2)
#   PYTHON              the Python that has posttrain (default: python)
#
# Paths are relative to the root of the repository. docs/scale_out.md has the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch/multi_node/hosts.sh

engine="${ENGINE:-zero2}"
exec "${PYTHON:-python}" -m accelerate.commands.launch \
  --config_file "launch/accelerate/$engine.yaml" \
  --num_machines "$N_HOSTS" --machine_rank "$HOST_RANK" --num_processes "$((N_HOSTS * PROCESSES_PER_HOST))" \
  --main_process_ip "$MAIN_HOST" --main_process_port "$MAIN_PORT" \
  $([[ $engine == zero* ]] && echo --deepspeed_multinode_launcher standard) \
  -m posttrain "$@"
