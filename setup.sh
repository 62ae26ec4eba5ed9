#!/usr/bin/env bash
# Makes .venv with everything the main job (sim), the main job on NVIDIA GPUs (cuda, or cuda13 for Blackwell) or TPUs
# (tpu), the PyTorch export (export) or the tests (test) need; or .venv-estimate with the compilers of TPUs and GPUs, for
# wmjax.estimate (estimate, 2.5 GB).
# Usage: ./setup.sh sim|cuda|cuda13|tpu|export|test|estimate     Environment: PYTHON=python3.12 to choose the interpreter.
# The Dockerfile runs it too.
set -euo pipefail
cd "$(dirname "$0")"
mode=${1:-sim}
venv=.venv
fail() { printf 'setup.sh: %s\n' "$1" >&2; exit 2; }
case $mode in
  sim) extras=sim ;;
  cuda|cuda13|tpu) extras=sim,$mode ;;
  export) extras=sim,export ;;
  test) extras=sim,export,serve,dev ;;
  estimate) extras=tpu venv=.venv-estimate ;;
  *) fail "unknown mode '$mode'; use sim, cuda, cuda13, tpu, export, test or estimate" ;;
esac

# Headless rendering needs Mesa's software GL; on a machine with a GPU driver these are harmless.
packages=(libosmesa6 libegl1 libgl1-mesa-dri libopengl0 libglvnd0)
[ "$mode" != estimate ] || packages=() # nothing is rendered
missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
else
  echo "setup.sh: not a Debian system: make sure that EGL or OSMesa (${packages[*]} on Debian) is installed" >&2
fi
if ((${#missing[@]})); then
  install="apt-get install -y ${missing[*]}"
  if [ "$(id -u)" = 0 ]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive $install >/dev/null || fail "could not install: run '$install'"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo apt-get update -qq && sudo DEBIAN_FRONTEND=noninteractive $install >/dev/null || fail "run 'sudo $install'"
  else
    fail "system packages are missing: run 'sudo $install' and then this script again"
  fi
fi

python=${PYTHON:-python3}
if [ -x $venv/bin/python ]; then python=$venv/bin/python; fi # it exists: its version decides, not that of $PYTHON
command -v "$python" >/dev/null || fail "no '$python'; install Python 3.11 or newer, or set PYTHON"
version=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
((version >= 311)) || fail "$python is Python ${version:0:1}.${version:1}; wmjax needs 3.11 or newer: delete $venv if it is there, set PYTHON=python3.11"
if [ ! -x $venv/bin/python ]; then
  "$python" -m venv "$venv" || fail "could not make $venv: on Debian run 'apt-get install python3-venv'"
fi
pip=($venv/bin/python -m pip --quiet --disable-pip-version-check)
constraints=()
case $version in # exact versions
  311) constraints=(-c constraints/py311.txt) ;;
  312 | 313) constraints=(-c constraints/py312.txt) ;;
esac
# torch by itself and first: left to the resolver, some indexes answer with a CUDA build of several gigabytes.
case $extras in *export*) [ "$version" = 311 ] && "${pip[@]}" install torch==2.13.0 ;; esac
docs=()
if [ "$mode" = test ]; then # pip before 25.1 knows no dependency groups
  mapfile -t docs < <($venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["docs"], sep="\n")')
fi
"${pip[@]}" install "${constraints[@]}" -e ".[$extras]" "${docs[@]}"
if [ "$mode" = estimate ]; then # CUDA's plugin compiles without its libraries of kernels, which are several gigabytes
  jax=$("$venv/bin/python" -c 'import importlib.metadata; print(importlib.metadata.version("jax"))')
  "${pip[@]}" install --no-deps "jax-cuda12-plugin==$jax" "jax-cuda12-pjrt==$jax" nvidia-cuda-nvcc-cu12 \
    nvidia-cuda-runtime-cu12 nvidia-cuda-cupti-cu12 nvidia-nvjitlink-cu12
fi
# The peers' clients, without what they ask for beside: openpi's wants numpy < 2, vla-eval's a command line.
case $extras in *serve*) "${pip[@]}" install --no-deps openpi-client==0.1.2 vla-eval==0.8.0 ;; esac
echo "ready: $venv/bin/python (mode $mode)"
