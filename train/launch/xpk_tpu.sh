#!/usr/bin/env bash
CLUSTER=${CLUSTER:-my-cluster}                     # made by `xpk cluster create`
TPU=${TPU:-v5litepod-16}                           # its TPU type
IMAGE=${IMAGE:-REGION-docker.pkg.dev/PROJECT/REPOSITORY/wmjax:latest} # wmjax[tpu]; /shared: all pods see it, else gs:// URLs

# TPU pods on GKE by XPK. More slices: SLICES=2.
#   bash train/launch/xpk_tpu.sh
set -euo pipefail
exec xpk workload create --cluster="$CLUSTER" --workload="${WORKLOAD:-wmjax}" --tpu-type="$TPU" \
  --num-slices="${SLICES:-1}" --max-restarts=100 --docker-image="$IMAGE" \
  --command="export WMJAX_DISTRIBUTED=auto WMJAX_CACHE=/shared/wmjax && exec python -m wmjax.train --config e2_flow \
--scale 3b --data.path /shared/libero-224 --run /shared/runs/e2_flow-3b --no-evaluation"
