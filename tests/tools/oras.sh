#!/usr/bin/env bash
# The ORAS project's client, from PyPI, in an environment of its own; prints the path of its Python.
. "$(dirname "$0")/lib.sh"
need_packages python3-venv

package=oras==0.2.43
venv=$WHERRY_CACHE/oras
only_one oras
if [ "$(cat "$venv/version" 2>/dev/null)" != "$package" ]; then
  say "installing $package"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "$package" >&2
  printf '%s\n' "$package" >"$venv/version"
fi
printf '%s\n' "$venv/bin/python"
