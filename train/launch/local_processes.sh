#!/usr/bin/env bash
PROCESSES=${PROCESSES:-2}                          # processes on this machine
RUN=${RUN:-$HOME/runs/e2_flow-smoke}               # the run's folder; the same command resumes it
COMMAND=${COMMAND:-"python -m wmjax.train --config e2_flow --scale smoke --no-evaluation"}

# Several processes on one machine, as torchrun starts them: to rehearse a job of several hosts. GPUs, if there are any,
# are shared evenly.
#   bash train/launch/local_processes.sh
set -euo pipefail
port=${PORT:-12355}
gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
share=$((gpus / PROCESSES))
children=()
stop() { kill -TERM "${children[@]}" 2>/dev/null || true; }
trap stop TERM INT HUP
for ((i = 0; i < PROCESSES; i++)); do
  own=()
  ((share == 0)) || own=("CUDA_VISIBLE_DEVICES=$(seq -s, $((i * share)) $((i * share + share - 1)))")
  # shellcheck disable=SC2086  # several words
  env "${own[@]}" JAX_COORDINATOR_ADDRESS="localhost:$port" JAX_NUM_PROCESSES="$PROCESSES" JAX_PROCESS_ID="$i" \
    $COMMAND --run "$RUN" &
  children+=($!)
done
status=0
for child in "${children[@]}"; do
  code=0
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the waiting, not the child
    code=0
    wait "$child" || code=$?
  done
  ((status)) || status=$code
done
exit "$status" # 143 after SIGTERM: saved, and resumed by the same command
