#!/usr/bin/env bash
# Runs a command on a kernel whose cgroups are v2 and nothing else, whatever this machine's are: Debian's
# user-mode-linux, a kernel that is a process, with this machine's files (read-only) as its root. The command's output
# and exit status are passed on; nothing is left when it ends or is killed.
#
#   [WHERRY_V2_SECONDS_MAX=300] tests/tools/cgroup-v2.sh COMMAND ARGUMENT…
#
# There the command is root, in $TMPDIR and /run it can write (in memory), and it has the loopback network, bridges,
# veth and overlayfs.
# That kernel lacks: nftables' families (so `nft` is a stand-in that agrees to everything and lists nothing), more than
# one processor, pressure stall information, huge pages.
set -euo pipefail
modules=/usr/lib/uml/modules/$(basename "$(echo /usr/lib/uml/modules/*)")

# load MODULE…: with what it needs, which `modules.dep` lists in reverse.
load() {
  local module path paths
  for module; do
    paths=$(awk -F ': *' -v end="/$module.ko" 'substr($1, length($1) - length(end) + 1) == end {
      count = split($2, needed, " "); while (count) print needed[count--]; print $1
    }' "$modules/modules.dep")
    for path in $paths; do busybox insmod "$modules/$path" 2>/dev/null || true; done
  done
}

# The first process of the other kernel.
inside() {
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /dev/pts /dev/shm /run/bin /run/tmp /run/host
  mount -t devpts -o ptmxmode=666 devpts /dev/pts
  mount -t tmpfs tmpfs /dev/shm
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  ln -sf /proc/self/fd /dev/fd
  load overlay veth bridge
  ip link set lo up
  # shellcheck disable=SC2154 # The kernel puts what it does not know on its command line into the environment.
  mount -t hostfs -o "$wherry_work" hostfs /run/host
  cat >/run/bin/nft <<'END'
#!/bin/sh
case "$*" in
  *-f*) cat >/dev/null ;;
  *-j*) echo '{"nftables": []}' ;;
esac
END
  chmod +x /run/bin/nft
  local status=0
  (
    # shellcheck disable=SC1091
    . /run/host/command
    export PATH=/run/bin:$PATH TMPDIR=/run/tmp HOME=/run/tmp
    cd "$directory"
    exec "${command[@]}" </dev/null
  ) || status=$?
  echo "$status" >/run/host/status
}

if [ $$ = 1 ] && [ -n "${wherry_work:-}" ]; then
  inside || true
  exec busybox poweroff -f
fi

[ -x /usr/bin/linux.uml ] || { echo "install the package user-mode-linux" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
command=("$@") directory=$PWD
{ export -p; declare -p command directory; } >"$work/command"
# A process namespace of its own, whose end is the end of all processes the kernel consists of; and it ends with this
# script, as this script does with who started it.
setpriv --pdeathsig KILL timeout --foreground --signal KILL "${WHERRY_V2_SECONDS_MAX:-300}" \
  setpriv --pdeathsig KILL unshare --pid --fork --kill-child=KILL --mount --mount-proc \
  setarch --addr-no-randomize linux.uml mem=1536M "umid=$$" "uml_dir=$work" rootfstype=hostfs rootflags=/ ro loglevel=1 con=null con0=null,fd:1 \
  "init=$(realpath "$0")" "wherry_work=$work" </dev/null || true
[ -s "$work/status" ] || { echo "the kernel ended before the command did" >&2; exit 1; }
exit "$(cat "$work/status")"
