#!/usr/bin/env bash
# Tries the plug-in with the real LeRobot, in a separate environment: the policy `mini` acts through LeRobot as it does
# without, and lerobot-eval runs an episode in LIBERO.
# Usage: ./try.sh [FOLDER]    FOLDER holds the environment (3 GB) and the exported policy; default /tmp/lerobot_policy_wmjax
#
# LeRobot 0.4.4 is the newest for Python 3.11. It requires torch < 2.11, and pip would take a CUDA build for that; it runs
# with the CPU build of torch 2.13.0, so LeRobot is installed without its requirements, and what it imports beside it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-/tmp/lerobot_policy_wmjax}
python=$folder/venv/bin/python
pip=("$python" -m pip --quiet --disable-pip-version-check install)
if [ ! -e "$folder/complete" ]; then
  mkdir -p "$folder"
  "${PYTHON:-python3.11}" -m venv "$folder/venv"
  "${pip[@]}" torch==2.13.0
  # LeRobot caps these; transformers, which wmjax does not need to act, would be too new for it.
  grep -Ev '^(huggingface.hub|packaging|fsspec|transformers)=' "$root/constraints/py311.txt" >"$folder/constraints.txt"
  "${pip[@]}" -c "$folder/constraints.txt" -e "$root[sim]" 'huggingface-hub>=0.34.2,<0.36' draccus==0.10.0 \
    'gymnasium>=1.1.1,<2' 'datasets>=4,<5' 'diffusers>=0.27.2,<0.36' 'deepdiff>=7.0.1,<9' 'imageio[ffmpeg]>=2.34,<3' \
    'jsonlines>=4,<5' 'termcolor>=2.4,<4' 'pyserial>=3.5,<4' 'packaging>=24.2,<26' psutil opencv-python-headless
  "${pip[@]}" --no-deps lerobot==0.4.4 torchvision==0.25.0 accelerate -e "$here"
  touch "$folder/complete"
fi
export JAX_PLATFORMS=cpu MUJOCO_GL=${MUJOCO_GL:-egl} HF_HUB_OFFLINE=1
cd "$folder"
exec "$python" "$here/check.py" "$folder/policy"
