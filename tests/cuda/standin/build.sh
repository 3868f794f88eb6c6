#!/bin/sh
# Builds the stand-ins for NVIDIA's driver, run-time compiler and libraries into the folder $1. Needs g++ 12 or newer, nothing else.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh FOLDER}
mkdir -p "$out"
library="-std=c++17 -O2 -Wall -Wextra -fPIC -shared -fvisibility=hidden"
# The flags that kernels are compiled with: no assumption about aliasing, as CubeCL casts pointers freely.
kernel="-std=c++17 -O1 -march=native -fPIC -fno-strict-aliasing -fno-math-errno -fpermissive -w"
g++ $library -Wl,-soname,libcuda.so.1 "$here/driver.cpp" "$here/plans.cpp" -ldl -o "$out/libcuda.so.1"
g++ $library -Wl,-soname,libnvrtc.so "$here/compiler.cpp" -ldl -o "$out/libnvrtc.so"
g++ $library -Wl,-soname,libcublasLt.so.13 "$here/cublaslt.cpp" -L"$out" -l:libcuda.so.1 -o "$out/libcublasLt.so.13"
g++ $library -Wl,-soname,libcudnn.so.9 "$here/cudnn.cpp" -L"$out" -l:libcuda.so.1 -o "$out/libcudnn.so.9"
cp "$here/device.h" "$here/matrix.h" "$here/launch.h" "$out/"
# What a program looks for before it trusts a toolkit; the stand-in reads none of it.
mkdir -p "$out/include/crt"
for header in cuda_runtime cuda_fp16 cuda_bf16 mma crt/mma; do : > "$out/include/$header.h"; done
echo '#define CUDA_VERSION 13000' > "$out/include/cuda.h"
printf '%s' "$kernel" > "$out/flags"
g++ $kernel -x c++-header "$out/device.h" -o "$out/device.h.gch"
