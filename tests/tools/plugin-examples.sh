#!/usr/bin/env bash
# Compiles the probe of plugins/examples in C and in Python, and prints the folder where probe-c.wasm and
# probe-python.wasm are. A second run with the same sources does nothing.
. "$(dirname "$0")/lib.sh"
need_rust
need_packages clang wasi-libc python3-venv

top=$(cd "$(dirname "$0")/../.." && pwd)
examples=$top/plugins/examples
home=$WHERRY_CACHE/plugin-examples
componentize=componentize-py==0.25.0
only_one plugin-examples
mkdir -p "$home"
stamp=$(cat "$0" "$top"/plugins/wit/*.wit "$examples"/c/* "$examples"/python/* "$examples"/bindings-c/src/* | sha256sum)
finish() { printf '%s\n' "$home"; exit 0; }
[ "$(cat "$home/stamp" 2>/dev/null)" != "$stamp" ] || finish

say "the example probe in C"
CARGO_TARGET_DIR=$home/target cargo run --quiet --manifest-path "$examples/Cargo.toml" -p bindings-c -- \
  "$top/plugins/wit" probe "$home/bindings" >&2
# The compiler's own sysroot has what makes a component of a module, and the linker below it.
linkers=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
wasi=/usr/lib/wasm32-wasi
for source in "$examples/c/probe.c" "$home/bindings/probe.c"; do
  clang --target=wasm32-wasi -Os -Wall -Werror -I "$home/bindings" -c "$source" -o "$home/$(basename "$(dirname "$source")").o"
done
"$linkers/wasm-component-ld" --wasm-ld-path "$linkers/gcc-ld/wasm-ld" --no-entry --gc-sections --strip-all \
  "$wasi/crt1-reactor.o" "$home/c.o" "$home/bindings.o" "$home/bindings/probe_component_type.o" -L "$wasi" -lc \
  -o "$home/probe-c.wasm"

say "the example probe in Python"
venv=$WHERRY_CACHE/componentize-py
if [ "$(cat "$venv/version" 2>/dev/null)" != "$componentize" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "$componentize" >&2
  printf '%s\n' "$componentize" >"$venv/version"
fi
# In a copy, as what it makes of the source lies beside it.
rm -rf "$home/python"
cp -r "$examples/python" "$home/python"
mkdir -p "$home/python/wit/deps"
mv "$home/python/world.wit" "$home/python/wit/"
cp -r "$top/plugins/wit" "$home/python/wit/deps/plugin"
(cd "$home/python" && "$venv/bin/componentize-py" -d wit -w probe componentize app -o "$home/probe-python.wasm" >&2)

printf '%s\n' "$stamp" >"$home/stamp"
finish
