#!/usr/bin/env bash
# Makes `cargo build --target wasm32-wasip2` (and wasip1) work for guests: plain stable cargo, this machine's compiler.
#
#   tests/tools/guest-toolchain.sh          prints the environment file that a guest build sources
#
# rustup adds the targets where it can reach its server. Elsewhere only their standard library is missing (the
# linkers come with the toolchain), and it is built here from Debian's rust-src of exactly the compiler's version,
# with wasi-libc from Debian, into a sysroot in the cache. A second run with the same compiler does nothing.
# WHERRY_GUESTS_FROM_SOURCE=1 takes that way without asking rustup.
. "$(dirname "$0")/lib.sh"
need_rust

targets=(wasm32-wasip2 wasm32-wasip1)
rustc=$(command -v rustc)
if command -v rustup >/dev/null; then rustc=$(rustup which rustc); fi
release=$("$rustc" -vV | sed -n 's/^release: //p')
host=$("$rustc" -vV | sed -n 's/^host: //p')
home=$WHERRY_CACHE/guest-toolchain
from_source=${WHERRY_GUESTS_FROM_SOURCE:-}
stamp="1$from_source $("$rustc" -vV | sed -n 's/^commit-hash: //p') ${targets[*]}"

finish() {
  printf '%s\n' "$stamp" >"$home/stamp"
  printf '%s\n' "$home/env"
  exit 0
}

only_one guest-toolchain
mkdir -p "$home"
[ "$(cat "$home/stamp" 2>/dev/null)" != "$stamp" ] || finish

sysroot=$("$rustc" --print sysroot)
has_targets() { [ -z "$from_source" ] || return 1; for t in "${targets[@]}"; do [ -d "$sysroot/lib/rustlib/$t/lib" ] || return 1; done; }
if [ -z "$from_source" ] && ! has_targets && command -v rustup >/dev/null; then
  say "asking rustup for ${targets[*]}"
  # Without its server rustup retries for minutes; it has answered long before this limit where it can.
  timeout 60 rustup target add "${targets[@]}" >&2 || say "rustup cannot add them here; building them from Debian's rust-src"
fi
if has_targets; then
  : >"$home/env"
  finish
fi

work=$home/work
rm -rf "$work"
mkdir -p "$work/debs" "$work/source" "$work/seed/src"
newer_deb "$work/debs" rust-src "^${release//./\\.}[+~-]" ||
  die "no Debian suite has rust-src $release; install that Rust version's wasm32 targets with rustup instead"
newer_deb "$work/debs" wasi-libc . || die "no Debian suite has wasi-libc"
# Debian's vendored crates lack binaries that the checksums cover; cargo fetches the few that std needs instead.
dpkg-deb --fsys-tarfile "$work"/debs/rust-src_*.deb |
  tar -x -C "$work/source" --strip-components=4 --exclude='*/library/vendor' --wildcards './usr/src/*/library'
dpkg-deb -x "$work"/debs/wasi-libc_*.deb "$work/wasi"

say "building the standard library for ${targets[*]} (about a minute)"
cat >"$work/seed/Cargo.toml" <<'TOML'
[package]
name = "sysroot-seed"
version = "0.0.0"
edition = "2021"
[workspace]
[profile.release]
codegen-units = 1
TOML
echo '#![no_std]' >"$work/seed/src/lib.rs"
flags=(-Cembed-bitcode=yes "--remap-path-prefix=$work/source=/rust-src" "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo")
# cargo builds std only for a nightly compiler, or for one that is told to pass as one.
(cd "$work/seed" && env -u CARGO_BUILD_TARGET -u RUSTC_WRAPPER -u CARGO_ENCODED_RUSTFLAGS \
  RUSTC="$rustc" RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR="$work/target" \
  __CARGO_TESTS_ONLY_SRC_ROOT="$work/source/library" \
  "${rustc%/*}/cargo" build --quiet --release -Zbuild-std=std,panic_abort "${targets[@]/#/--target=}" >&2)

new=$home/sysroot.new
rm -rf "$new"
mkdir -p "$new/lib/rustlib"
ln -s "$sysroot/lib/rustlib/$host" "$new/lib/rustlib/$host"
for target in "${targets[@]}"; do
  lib=$new/lib/rustlib/$target/lib
  mkdir -p "$lib/self-contained"
  find "$work/target/$target/release/deps" -name '*.rlib' ! -name 'libsysroot_seed-*' -exec cp {} "$lib/" \;
  # Debian's name for the preview-1 flavour is the older one.
  wasi=$work/wasi/usr/lib/${target/wasip1/wasi}
  cp -L "$wasi"/crt1-{command,reactor}.o "$wasi"/lib{c,wasi-emulated-*}.a "$lib/self-contained/"
done
rm -rf "$home/sysroot"
mv "$new" "$home/sysroot"
# Flags for the guest targets alone: a RUSTFLAGS for all would also reach build scripts, and hide these.
for target in "${targets[@]}"; do
  name=${target^^}
  printf 'export CARGO_TARGET_%s_RUSTFLAGS="--sysroot=%s"\n' "${name//-/_}" "$home/sysroot"
done >"$home/env"
rm -rf "$work"
say "guest toolchain ready in $home"
finish
