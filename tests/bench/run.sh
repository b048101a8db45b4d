#!/usr/bin/env bash
# Builds a release, makes images and guests, measures and prints the tables of README.md; parts can be named
# (see tests/bench/main.rs).
here=$(cd "$(dirname "$0")/../.." && pwd)
. "$here/tests/tools/lib.sh"
cd "$here"
need_rust
need_packages build-essential pkg-config iproute2 nftables busybox-static curl crun etcd-server
tests/tools/docker.sh install
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$WHERRY_CACHE/target}
toolchain=$(tests/tools/guest-toolchain.sh)
export WHERRY_GUEST_ENV=$toolchain
(. "$toolchain" && cd tests/guests && CARGO_TARGET_DIR="$WHERRY_CACHE/guests" cargo build --quiet --release --target wasm32-wasip2)
export WHERRY_GUESTS=$WHERRY_CACHE/guests
WHERRY_IMAGE_BUSYBOX=$(tests/tools/debian-image.sh busybox)
export WHERRY_IMAGE_BUSYBOX
WHERRY_PLUGIN_EXAMPLES=$(tests/tools/plugin-examples.sh)
export WHERRY_PLUGIN_EXAMPLES
# The measuring side too: part of it is a client of hundreds of connections, which must not be slower than the server.
cargo build --release -p wherry -p wherry-tests --bin wherry --bin bench
export WHERRY_BIN=$CARGO_TARGET_DIR/release/wherry
exec "$CARGO_TARGET_DIR/release/bench" "$@"
