#!/bin/sh
# Runs a command on the stand-ins for NVIDIA's driver and compiler: run.sh [count | run] COMMAND... (see README.md).
# The libraries are built into STANDIN_HOME first, if they are not there or older than their sources.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mode=${1:?usage: run.sh count|run COMMAND...}
shift
home=${STANDIN_HOME:-${TMPDIR:-/tmp}/standin-$(id -u)}
for source in driver.cpp compiler.cpp cublaslt.cpp cudnn.cpp plans.cpp device.h matrix.h launch.h build.sh; do
    if [ ! -e "$home/flags" ] || [ "$here/$source" -nt "$home/flags" ]; then "$here/build.sh" "$home" && break; fi
done
export STANDIN_MODE="$mode" STANDIN_CACHE="${STANDIN_CACHE:-$home/kernels}"
export CUDA_PATH="${CUDA_PATH:-$home}" CUBECL_AUTOTUNE_LEVEL="${CUBECL_AUTOTUNE_LEVEL:-minimal}"
if [ -n "${NVRTC:-}" ]; then
    # NVIDIA's own compiler from the folder NVRTC, with the headers in CUDA_PATH, beside the stand-ins for the driver and the libraries.
    mkdir -p "$home/driver"
    for library in libcuda.so.1 libcublasLt.so.13 libcudnn.so.9; do ln -sf "../$library" "$home/driver/"; done
    home="$home/driver:$NVRTC"
fi
export LD_LIBRARY_PATH="$home${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$@"
