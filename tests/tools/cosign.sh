#!/usr/bin/env bash
# cosign itself, Debian's of a newer suite, unpacked in the cache; prints the program's path.
. "$(dirname "$0")/lib.sh"

# The second: from the third on, signatures are bundles unless it is asked for others.
wanted='^2\.'
home=$WHERRY_CACHE/cosign
only_one cosign
if [ "$(cat "$home/version" 2>/dev/null)" != "$wanted" ]; then
  work=$(mktemp -d)
  newer_deb "$work" cosign "$wanted" || die "Debian's newer suites have no cosign 2"
  rm -rf "$home"
  mkdir -p "$home"
  dpkg-deb -x "$work"/cosign_*.deb "$work/root"
  mv "$work/root/usr/bin/cosign" "$home/cosign"
  rm -rf "$work"
  printf '%s\n' "$wanted" >"$home/version"
fi
printf '%s\n' "$home/cosign"
