#!/usr/bin/env bash
# Builds the page into `dist`, which is in the repository: `cargo build` needs no Node. With `check`, builds it elsewhere and
# says whether `dist` is what comes out.
set -euo pipefail
cd "$(dirname "$0")"

npm ci --no-audit --no-fund --silent
npx tsc
if [ "${1:-}" = check ]; then
  built=$(mktemp -d)
  trap 'rm -rf "$built"' EXIT
  npx vite build --logLevel warn --outDir "$built" --emptyOutDir
  diff -r dist "$built" || { echo "the page's dist is not what its source builds: run src/serve/web/build.sh" >&2; exit 1; }
else
  npx vite build --logLevel warn
fi
# What a first visit loads, compressed.
files=dist/*
size=$(for file in $files; do gzip -9c "$file"; done | wc -c)
[ "$size" -le 150000 ] || { echo "the page is $size bytes compressed: at most 150000 are wanted" >&2; exit 1; }
echo "the page: $size bytes compressed"
