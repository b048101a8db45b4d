#!/usr/bin/env bash
# Installs what the tests need and runs all of them: lints, unit and conformance tests, and the end-to-end tests with
# real kubectl, registry, images and guests. Nothing skips: what is missing is installed or is a failure.
#
#   tests/run.sh                 everything
#   tests/run.sh FILTER          only the end-to-end tests whose names contain FILTER
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/tests/tools/lib.sh"
cd "$here"

need_rust
need_packages build-essential pkg-config iproute2 nftables iptables containernetworking-plugins busybox-static curl openssl docker-registry apache2-utils \
  user-mode-linux etcd-server etcd-client git
tests/tools/docker.sh install
need_kubectl
only_one tests

# Kept outside the work tree: without it the run only takes longer.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$WHERRY_CACHE/target}
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

say "guests: compiling the Wasm programs that tests and the example run"
toolchain=$(tests/tools/guest-toolchain.sh)
export WHERRY_GUEST_ENV=$toolchain
(. "$toolchain" && cd tests/guests && CARGO_TARGET_DIR="$WHERRY_CACHE/guests" cargo build --quiet --release --target wasm32-wasip2)
(. "$toolchain" && cd tests/guests && CARGO_TARGET_DIR="$WHERRY_CACHE/guests" cargo build --quiet --release --target wasm32-wasip1 -p exit-code -p programs)
(. "$toolchain" && cd docs/examples/mixed-pod/writer && CARGO_TARGET_DIR="$WHERRY_CACHE/example" cargo build --quiet --release --target wasm32-wasip2)
export WHERRY_GUESTS=$WHERRY_CACHE/guests
export WHERRY_EXAMPLE_WRITER=$WHERRY_CACHE/example/wasm32-wasip2/release/writer.wasm
for image in nginx redis influxdb busybox pause; do
  layout=$(tests/tools/debian-image.sh "$image")
  export "WHERRY_IMAGE_${image^^}=$layout"
done

WHERRY_PYTHON=$(tests/tools/python-client.sh)
export WHERRY_PYTHON
WHERRY_MOTO=$(tests/tools/moto.sh)
export WHERRY_MOTO

if [ $# = 0 ]; then
  say "format and lints"
  cargo fmt --all --check
  (cd plugins/builtin && cargo fmt --check)
  cargo clippy --quiet --workspace --all-targets -- -D warnings
fi
say "building"
# Always the whole workspace: a part of it would have other features, and compile everything again.
cargo build --quiet --workspace
export WHERRY_BIN=$CARGO_TARGET_DIR/debug/wherry
if [ $# = 0 ]; then
  say "all tests"
  cargo test --workspace --no-fail-fast
  say "formats that the built-in plugins read"
  (cd plugins/builtin && CARGO_TARGET_DIR="$WHERRY_CACHE/builtin" cargo test --quiet -p fetch -p unpack -p git -p oci-artifact -p s3)
else
  say "end-to-end tests with names that contain $1"
  cargo test --workspace --test it -- "$1"
fi
