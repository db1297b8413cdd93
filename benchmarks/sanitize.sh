#!/usr/bin/env bash
# The forest kernel built with AddressSanitizer and UBSan, fed random forests and damaged files.
# bash benchmarks/sanitize.sh PYTHON
set -euo pipefail
python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cp -r "$root/src/sartor" "$place/sartor"
rm -f "$place"/sartor/kernels/_forest*.so
include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
${CC:-gcc} -std=gnu11 -O1 -g -ffp-contract=off -fsanitize=address,undefined \
    -fno-sanitize-recover=all -fno-omit-frame-pointer -shared -fPIC -pthread -I"$include" \
    "$place"/sartor/kernels/*.c -o "$place/sartor/kernels/_forest.abi3.so"
library=$(${CC:-gcc} -print-file-name=libasan.so)
# Python keeps much until it ends, and its small blocks are its own: leaks are not looked for.
PYTHONPATH="$place:$root/tests" PYTHONMALLOC=malloc LD_PRELOAD="$library" \
    ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 "$python" "$root/benchmarks/sanitize.py" \
    "${2:-200}"
