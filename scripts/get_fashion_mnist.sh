#!/usr/bin/env bash
# Fetch Fashion-MNIST (Debian package dataset-fashion-mnist, MIT) into data/ without installing anything.
# On a machine without apt, put the four files of github.com/zalandoresearch/fashion-mnist into a folder and pass it as --data.
set -euo pipefail
cd "$(dirname "$0")/.."
target=data/usr/share/datasets/fashion-mnist
[ -f "$target/train-images-idx3-ubyte.gz" ] && { echo "already there: $target"; exit 0; }
command -v apt-get >/dev/null || { echo "apt-get is not here; see the comment in $0" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
(cd "$work" && { apt-get download -q dataset-fashion-mnist || { apt-get update -qq && apt-get download -q dataset-fashion-mnist; }; })
mkdir -p data
dpkg-deb -x "$work"/dataset-fashion-mnist_*.deb data
echo "ready: $target"
