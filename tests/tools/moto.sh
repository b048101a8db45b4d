#!/usr/bin/env bash
# Installs moto's server, which speaks S3, into an environment in the cache, and prints that environment's python.
. "$(dirname "$0")/lib.sh"

# As of the day it was chosen; pip takes what it needs from its own bounds.
moto='moto[s3,server]==5.1.18'

need_packages python3 python3-venv
only_one moto
venv=$WHERRY_CACHE/moto-$(printf '%s' "$moto $(python3 --version)" | sha256sum | cut -c1-16)
if [ ! -f "$venv/complete" ]; then
  say "installing $moto"
  rm -rf "$venv"
  python3 -m venv "$venv" >&2
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-input "$moto" >&2
  touch "$venv/complete"
fi
echo "$venv/bin/python"
