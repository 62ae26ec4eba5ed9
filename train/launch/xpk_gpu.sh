#!/usr/bin/env bash
CLUSTER=${CLUSTER:-my-cluster}                     # made by `xpk cluster create`
GPU=${GPU:-h100-mega-80gb-8}                       # its device type
IMAGE=${IMAGE:-REGION-docker.pkg.dev/PROJECT/REPOSITORY/wmjax:latest} # wmjax[cuda]; /shared: all pods see it, else gs:// URLs

# GPU pods on GKE by XPK: one process per node, which XPK numbers. More nodes: NODES=4.
#   bash train/launch/xpk_gpu.sh
set -euo pipefail
exec xpk workload create --cluster="$CLUSTER" --workload="${WORKLOAD:-wmjax}" --device-type="$GPU" \
  --num-nodes="${NODES:-2}" --max-restarts=100 --docker-image="$IMAGE" \
  --command='export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS%:*}:12355 JAX_NUM_PROCESSES=$NNODES '\
'JAX_PROCESS_ID=$NODE_RANK WMJAX_CACHE=/shared/wmjax && exec python -m wmjax.train --config e2_flow --scale 3b '\
'--data.path /shared/libero-224 --run /shared/runs/e2_flow-3b --no-evaluation'
