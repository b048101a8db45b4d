#!/usr/bin/env bash
# Installs the Python client of Kubernetes into an environment in the cache, and prints that environment's python.
. "$(dirname "$0")/lib.sh"

# The client and what it needs, as of the day it was chosen; pip takes the rest from the client's own bounds.
client=kubernetes==37.0.2

need_packages python3 python3-venv
only_one python-client
venv=$WHERRY_CACHE/python-$(printf '%s' "$client $(python3 --version)" | sha256sum | cut -c1-16)
if [ ! -f "$venv/complete" ]; then
  say "installing $client"
  rm -rf "$venv"
  python3 -m venv "$venv" >&2
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-input "$client" >&2
  touch "$venv/complete"
fi
echo "$venv/bin/python"
