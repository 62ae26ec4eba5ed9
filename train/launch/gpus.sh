#!/usr/bin/env bash
STORE=${STORE:-$HOME/libero-224}                   # the training store
RUN=${RUN:-$HOME/runs/e2_flow-3b}                  # the run's folder; the same command resumes it
SETTINGS=${SETTINGS:-"--train.batch_size 256"}     # any settings

# One machine: one process uses all of its GPUs.
#   bash train/launch/gpus.sh
set -euo pipefail
export JAX_PLATFORMS=cuda # fail instead of training on the CPU
# shellcheck disable=SC2086  # several words
exec python -m wmjax.train --config e2_flow --scale 3b --data.path "$STORE" --run "$RUN" $SETTINGS
