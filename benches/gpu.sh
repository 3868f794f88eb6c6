#!/usr/bin/env bash
# Everything worth knowing about kiln on one GPU, the most valuable first, each part under its own limit; every result is a file
# as soon as it exists. On a machine with a card, from kiln's checkout:
#
#     benches/gpu.sh [PART…]                 # default: all parts, in the order below; at most fifteen minutes in all
#
# card      what it is, and its ceilings as torch reaches them: products, copies, attention
# tiny      the quickstart, trained on the card; its losses beside the CPU's
# kernels   `kiln selftest --only kernel`: single kernels beside the CPU's
# models    `kiln selftest --only flux`: tiny models beside diffusers'
# train     a training step of FLUX.1-dev's shape at 1024², batch 1, beside PyTorch's
# paths     the same step with only some of the work done by NVIDIA's libraries
# sample    a sampling step at 1024², beside PyTorch's
# operations  single operations with their share of the ceiling
# start     a cold and a warm first step
#
# LIMIT replaces the limit of every part, in seconds. KILN names the program (default target/release/kiln, built with --features cuda), PYTHON a python3 with torch, diffusers and
# peft, OUT the folder of the results (default gpu-results).
set -u
cd "$(dirname "$0")/.."
out=${OUT:-gpu-results}; kiln=${KILN:-target/release/kiln}; python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONUNBUFFERED=1
parts=("$@")
say() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }
wanted() { [ ${#parts[@]} -eq 0 ] || printf '%s\n' "${parts[@]}" | grep -qx "$1"; }
# part NAME SECONDS COMMAND…: runs it under a limit, keeps what it prints, shows the end of it.
part() {
    local name=$1 limit=${LIMIT:-$2} code; shift 2
    say "$name"
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1; code=$?
    tail -n "${TAIL:-25}" "$out/$name.log"; echo "$name: exit $code"
}
# step NAME SECONDS CASES ARGUMENTS…: a benchmark of FLUX.1-dev's shape at 1024².
step() {
    local name=$1 limit=$2 only=$3; shift 3
    part "$name" "$limit" "$kiln" bench --device cuda --model flux --only "$only" --size 1024 --batch 1 --targets attention \
        --json "$out/$name.json" --output "$out/$name.md" "$@"
}
peer() { echo "$python benches/peer.py${1:+ --variants $1}"; }

if wanted card; then part card 60 "$python" benches/ceilings.py; fi
if wanted tiny; then
    part tiny 90 "$kiln" train --config configs/quickstart.toml --device cuda --set run.output="$out/runs" --set training.max_steps=50
    rm -rf "$out/runs"
fi
if wanted kernels; then part kernels 200 "$kiln" selftest --device cuda --only kernel; fi
if wanted models; then part models 150 "$kiln" selftest --device cuda --only flux; fi
if wanted train; then step train 220 train --repeats 5 --peer "$(peer "${VARIANTS:-}")"; fi
if wanted paths; then
    for paths in products epilogues attention,products attention,epilogues; do
        step "paths-$paths" 60 train --repeats 3 --cuda-paths "$paths"
    done
fi
if wanted sample; then step sample 100 sample --repeats 5 --peer "$(peer)"; fi
if wanted operations; then step operations 120 operations; fi
if wanted start; then
    cache=$(mktemp -d)
    for start in cold warm; do KILN_CACHE=$cache step "start-$start" 120 train --repeats 1; done
    rm -rf "$cache"
fi
say "done"
