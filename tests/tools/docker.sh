#!/usr/bin/env bash
# A Docker engine for tests.
#
#   docker.sh install               installs Debian's engine and starts nothing
#   docker.sh start DIR [FLAG…]     starts one that keeps everything below DIR, and waits until it answers:
#                                   socket DIR/docker.sock, log DIR/dockerd.log
#   docker.sh stop DIR              ends it with all of its containers, and takes its mounts away
#
# Run `start` in a network namespace of the test's own: an engine changes the firewall of the one it starts in, even with
# the flags that keep it from making a bridge.
set -euo pipefail

install() {
  command -v dockerd >/dev/null && return 0
  # The package starts a daemon in the machine's own network, unless a policy forbids it.
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  . "$(dirname "$0")/lib.sh"
  need_packages docker.io
}

start() {
  local dir=$1 engine tries=3
  shift
  mkdir -p "$dir"
  while [ "$tries" -gt 0 ]; do
    tries=$((tries - 1))
    # Without the lock of the run (tests/tools/lib.sh): its containers may outlive that.
    setsid dockerd --data-root "$dir/data" --exec-root "$dir/run" --pidfile "$dir/dockerd.pid" \
      --host "unix://$dir/docker.sock" --bridge none --iptables=false --ip6tables=false "$@" \
      >>"$dir/dockerd.log" 2>&1 </dev/null 9>&- &
    engine=$!
    for _ in $(seq 600); do
      curl -fs --unix-socket "$dir/docker.sock" http://docker/_ping >/dev/null 2>&1 && return 0
      kill -0 "$engine" 2>/dev/null || break
      sleep 0.1
    done
    # It gives its containerd 15 s to answer, also one that an engine before it had and that is just ending.
    tail -n 1 "$dir/dockerd.log" | grep -q "timeout waiting for containerd" || break
  done
  tail -n 20 "$dir/dockerd.log" >&2
  exit 1
}

# Ends processes by their pid files, and waits for them.
end() {
  local file=$1 pid
  pid=$(cat "$file" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 300); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
}

stop() {
  local dir=$1 ids
  ids=$(curl -fs --unix-socket "$dir/docker.sock" 'http://docker/containers/json?all=1' 2>/dev/null |
    grep -o '"Id":"[0-9a-f]*"' | cut -d'"' -f4) || true
  for id in $ids; do
    curl -s -X DELETE --unix-socket "$dir/docker.sock" "http://docker/containers/$id?force=1&v=1" >/dev/null || true
  done
  end "$dir/dockerd.pid"
  end "$dir/run/containerd/containerd.pid"
  # Deepest first.
  awk -v dir="$dir/" 'index($5, dir) == 1 {print $5}' /proc/self/mountinfo | sort -r | while read -r mount; do
    umount -l "$mount" || true
  done
}

command=${1:?install, start or stop}
shift
case $command in
  install | start | stop) "$command" "$@" ;;
  *) sed -n 's/^#   //p' "$0" >&2 && exit 2 ;;
esac
