#!/usr/bin/env bash
# Installs what the tests need and runs all of them: lints, unit and conformance tests, and the end-to-end tests with
# real kubectl, registry, images and guests. Nothing skips: what is missing is installed or is a failure. A check that
# fails is remembered and the next one runs; the last lines say how long each took and what failed. A test that fails is
# run again, alone: where it passes, the last lines name it, and the run passes if there are no more than two of those
# (tests/tools/again.sh).
#
#   tests/run.sh                 everything
#   tests/run.sh FILTER          only the end-to-end tests whose names contain FILTER
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/tests/tools/lib.sh"
cd "$here"
filter=${1:-}

# Folders with Rust that is compiled for Wasm, each a workspace of its own.
guest_workspaces=(plugins/builtin plugins/examples tests/guests docs/examples/mixed-pod/writer)

phase=
began=0
ran=()
failed=()
again=()

# phase WHAT: ends the phase before, and says what the next one does.
phase() {
  if [ -n "$phase" ]; then ran+=("$(printf '%6d s  %s' $((SECONDS - began)) "$phase")"); fi
  phase=$1
  began=$SECONDS
  if [ -n "$phase" ]; then say "$phase"; fi
}

# check WHAT COMMAND…: a phase of one command, after which the run goes on even if it fails.
check() {
  phase "$1"
  shift
  "$@" || { failed+=("$phase"); say "failed: $phase"; }
}

report() {
  local status=$? what
  [ "$status" = 0 ] || failed+=("$phase")
  phase ""
  say "$SECONDS s together"
  printf '%s\n' "${ran[@]}" >&2
  for what in "${again[@]}"; do say "failed, and passed when run again: $what"; done
  for what in "${failed[@]}"; do say "failed: $what"; done
  [ ${#failed[@]} = 0 ] || exit 1
}

# Within a check a failure alone ends nothing: each is looked at.
check_format() {
  local folder outcome=0
  cargo fmt --all --check || outcome=1
  for folder in "${guest_workspaces[@]}"; do
    (cd "$folder" && cargo fmt --all --check) || outcome=1
  done
  return $outcome
}

# Runs tests of the workspace; arguments are those of cargo test.
run_tests() {
  local log=$WHERRY_CACHE/tests.log status=0 outcome=0 passed
  cargo test --workspace --no-fail-fast "$@" 2>&1 | tee "$log" || status=${PIPESTATUS[0]}
  [ "$status" != 0 ] || return 0
  passed=$(tests/tools/again.sh "$log" "$status") || outcome=1
  [ -z "$passed" ] || mapfile -t again <<<"$passed"
  return $outcome
}

test_plugin_formats() {
  (cd plugins/builtin && CARGO_TARGET_DIR="$WHERRY_CACHE/builtin" cargo test --quiet -p fetch -p unpack -p git -p oci-artifact -p s3)
}

if [ -z "$filter" ]; then
  say "plan: tools, guests, images, clients; format, lints; build; all tests; formats of the built-in plugins"
else
  say "plan: tools, guests, images, clients; build; end-to-end tests with names that contain $filter"
fi
trap report EXIT

phase "tools: installing what the tests use"
need_rust
need_packages build-essential pkg-config iproute2 nftables iptables containernetworking-plugins busybox-static curl openssl docker-registry apache2-utils \
  user-mode-linux etcd-server etcd-client git xfsprogs mariadb-server-core
tests/tools/docker.sh install
need_kubectl
only_one tests

# Kept outside the work tree: without it the run only takes longer.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$WHERRY_CACHE/target}
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

phase "guests: compiling the Wasm programs that tests and the example run"
toolchain=$(tests/tools/guest-toolchain.sh)
export WHERRY_GUEST_ENV=$toolchain
(. "$toolchain" && cd tests/guests && CARGO_TARGET_DIR="$WHERRY_CACHE/guests" cargo build --quiet --release --target wasm32-wasip2)
(. "$toolchain" && cd tests/guests && CARGO_TARGET_DIR="$WHERRY_CACHE/guests" cargo build --quiet --release --target wasm32-wasip1 -p exit-code -p programs)
(. "$toolchain" && cd docs/examples/mixed-pod/writer && CARGO_TARGET_DIR="$WHERRY_CACHE/example" cargo build --quiet --release --target wasm32-wasip2)
export WHERRY_GUESTS=$WHERRY_CACHE/guests
export WHERRY_EXAMPLE_WRITER=$WHERRY_CACHE/example/wasm32-wasip2/release/writer.wasm

phase "images: made of Debian's packages"
for image in nginx redis influxdb busybox pause; do
  layout=$(tests/tools/debian-image.sh "$image")
  export "WHERRY_IMAGE_${image^^}=$layout"
done

phase "clients: the Python client, and a server of objects"
WHERRY_PYTHON=$(tests/tools/python-client.sh)
export WHERRY_PYTHON
WHERRY_MOTO=$(tests/tools/moto.sh)
export WHERRY_MOTO

if [ -z "$filter" ]; then
  check "format" check_format
  check "lints" cargo clippy --quiet --workspace --all-targets -- -D warnings
fi
phase "build"
# Always the whole workspace: a part of it would have other features, and compile everything again.
cargo build --quiet --workspace
export WHERRY_BIN=$CARGO_TARGET_DIR/debug/wherry
if [ -z "$filter" ]; then
  check "build of the tests" cargo test --quiet --workspace --no-run
  check "all tests" run_tests
  check "formats that the built-in plugins read" test_plugin_formats
else
  check "end-to-end tests with names that contain $filter" run_tests --test it -- "$filter"
fi
