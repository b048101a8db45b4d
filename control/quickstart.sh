#!/usr/bin/env bash
# The main job in one command: installs what is missing, builds wherry, starts a node and runs the example pod.
# Run again, it picks up where it is. Ctrl-C stops the node's programs and leaves its pods running.
#
#   control/quickstart.sh            build, start, run the example, stay in the foreground
#   control/quickstart.sh --detach   the same, and leave the node running in the background
#   control/quickstart.sh --down     end everything it made
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/tests/tools/lib.sh"

root=${WHERRY_ROOT:-/var/lib/wherry}
target=${CARGO_TARGET_DIR:-$WHERRY_CACHE/target}
wherry=$target/release/wherry
log=$root/up.log
example=$here/docs/examples/mixed-pod
export KUBECONFIG=$root/control/admin.kubeconfig

case ${1:-} in
"" | --detach) ;;
--down)
  [ -x "$wherry" ] || die "nothing was built under $target, so there is nothing to end"
  exec "$wherry" down --root "$root" ;;
*) die "unknown argument $1; see the head of $0" ;;
esac

need_rust
need_packages build-essential pkg-config iproute2 nftables busybox-static curl
need_kubectl

toolchain=$("$here/tests/tools/guest-toolchain.sh")
say "building wherry (the first time takes about ten minutes on two cores)"
WHERRY_GUEST_ENV=$toolchain CARGO_TARGET_DIR=$target cargo build --release --manifest-path "$here/Cargo.toml" -p wherry
say "building the example's Wasm component"
(. "$toolchain" && cd "$example/writer" && CARGO_TARGET_DIR="$WHERRY_CACHE/example" cargo build --release --target wasm32-wasip2)
nginx=$("$here/tests/tools/debian-image.sh" nginx)

mkdir -p "$root"
up= # the node's process, if this run started it
if kubectl get --raw /readyz --request-timeout=2s >/dev/null 2>&1; then
  say "the node is up already"
else
  say "starting the node: wherry up --root $root (log: $log)"
  setsid "$wherry" up --root "$root" >"$root/up.ready" 2>"$log" &
  up=$!
  echo "$up" >"$root/up.pid"
  for _ in $(seq 600); do
    grep -q '^ready' "$root/up.ready" && break
    kill -0 "$up" 2>/dev/null || { tail -n 20 "$log" >&2; die "wherry up ended; its log is $log"; }
    sleep 0.1
  done
  grep -q '^ready' "$root/up.ready" || die "the node is not ready after a minute; its log is $log"
fi
stop() {
  [ -n "$up" ] || return 0
  kill "$up" 2>/dev/null && wait "$up" 2>/dev/null
  say "the node's programs are stopped, its pods run on. Start it again: $0    End everything: $0 --down"
}
trap 'stop; exit 130' INT TERM

say "importing the example's images"
"$wherry" image import "$nginx" --name example/nginx:1 --root "$root"
"$wherry" image import "$WHERRY_CACHE/example/wasm32-wasip2/release/writer.wasm" --name example/writer:1 --root "$root"
say "running the example pod: nginx in a container, and a Wasm component that writes its page"
kubectl apply -f "$example/pod.yaml"
kubectl wait --for=condition=Ready pod/mixed --timeout=60s || { kubectl describe pod mixed; die "the example pod did not become ready"; }
kubectl get pods -o wide
ip=$(kubectl get pod mixed -o 'jsonpath={.status.podIP}')
say "the page, fetched over the pod's address: curl http://$ip/"
curl -fsS --retry 5 --retry-connrefused "http://$ip/"

cat >&2 <<TEXT

Next things to try, in another terminal:
  export KUBECONFIG=$KUBECONFIG PATH=$target/release:$(dirname "$(command -v kubectl)"):\$PATH
  kubectl logs mixed -c writer -f
  kubectl exec -it mixed -c nginx -- sh
  kubectl port-forward pod/mixed 8080:80     # then: curl http://127.0.0.1:8080/

TEXT
if [ "${1:-}" = --detach ] || [ -z "$up" ]; then
  say "end everything: $0 --down"
  exit 0
fi
say "the node runs until Ctrl-C; its log is $log"
wait "$up"
