#!/bin/sh
# Install Fashion-MNIST from the Debian package and check its files; `make data` calls this.
# Safe to run again: what is already there and intact is left alone.
set -eu

package=dataset-fashion-mnist
folder=/usr/share/datasets/fashion-mnist
here=$(cd "$(dirname "$0")" && pwd)
sums=$here/data.sha256

intact() {
    [ -d "$folder" ] && (cd "$folder" && sha256sum --check --quiet --strict "$sums")
}

if intact 2>/dev/null; then
    echo "data: $folder is complete"
    exit 0
fi

if ! command -v apt-get >/dev/null 2>&1; then
    echo "data: no apt-get here; unpack Debian's package $package so that $folder exists" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "data: installing $package needs root; run: sudo $0" >&2
    exit 1
fi

apt-get update
# --reinstall puts damaged files back even where the package counts as installed.
DEBIAN_FRONTEND=noninteractive apt-get install -y --reinstall "$package"

if ! intact; then
    echo "data: the files in $folder are not the expected ones (see $sums)" >&2
    exit 1
fi
echo "data: $folder is complete"
