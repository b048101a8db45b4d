# Shared by the scripts of this folder and by control/quickstart.sh; sourced, not run.
# Everything that is fetched or built once is kept in $WHERRY_CACHE, outside the work tree.

set -euo pipefail
umask 022

WHERRY_CACHE=${WHERRY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/wherry}
mkdir -p "$WHERRY_CACHE"

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "has to run as root: it installs packages, and pods need namespaces and mounts"

# need_packages PACKAGE…: installs those that are missing.
need_packages() {
  local package missing=()
  for package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" >"$WHERRY_CACHE/apt.log" 2>&1 ||
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}" >"$WHERRY_CACHE/apt.log" 2>&1; } ||
    { tail -n 20 "$WHERRY_CACHE/apt.log" >&2; die "apt-get could not install ${missing[*]}; the full log is $WHERRY_CACHE/apt.log"; }
}

# newer_deb DIR PACKAGE VERSION_PATTERN: downloads a package from a newer suite of the archive that this machine
# already uses and trusts, with package lists of its own: the system's lists, sources and packages stay as they are.
newer_deb() {
  local dir=$1 package=$2 pattern=$3 work suite version uri keyring
  work=$(mktemp -d)
  mkdir -p "$dir" "$work/lists/partial" "$work/cache/archives/partial"
  read -r uri keyring < <(debian_archive)
  local options=(-qq -o "Dir::Etc::sourcelist=$work/suite.sources" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists"
    -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3)
  for suite in ${WHERRY_SUITES:-trixie-backports trixie forky sid}; do
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$uri" "$suite" "$keyring" >"$work/suite.sources"
    apt-get "${options[@]}" update || continue
    version=$(apt-cache "${options[@]}" madison "$package" | awk -F' *[|] *' '{print $2}' | grep -m1 -E "$pattern" || true)
    [ -n "$version" ] || continue
    (cd "$dir" && apt-get "${options[@]}" download "$package=$version") || continue
    say "$package $version from Debian $suite"
    rm -rf "$work"
    return 0
  done
  rm -rf "$work"
  return 1
}

# The archive and its keyring, as this machine's own sources name them.
debian_archive() {
  local uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  uri=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk '/^URIs:/ {print $2}' | grep -m1 -E '/debian/?$' || true)
  [ -n "$uri" ] || uri=$(awk '/^deb / {for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) {print $i; exit}}' /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true)
  [ -n "$uri" ] || die "no Debian archive found under /etc/apt"
  printf '%s %s\n' "$uri" "$keyring"
}

# kubectl where there is none: Debian's, unpacked in the cache and put on PATH.
need_kubectl() {
  command -v kubectl >/dev/null && return 0
  if [ ! -x "$WHERRY_CACHE/kubectl/kubectl" ]; then
    say "installing kubectl"
    local work; work=$(mktemp -d)
    newer_deb "$work" kubectl '^1\.3' || die "Debian's newer suites have no kubectl 1.3x; install one by hand"
    dpkg-deb -x "$work"/kubectl_*.deb "$work/root"
    mkdir -p "$WHERRY_CACHE/kubectl"
    mv "$work/root/usr/bin/kubectl" "$WHERRY_CACHE/kubectl/kubectl"
    rm -rf "$work"
  fi
  export PATH="$WHERRY_CACHE/kubectl:$PATH"
}

# The compiler is the one thing a newcomer brings.
need_rust() {
  command -v cargo >/dev/null || { [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"; }
  command -v cargo >/dev/null || die "no cargo found; install Rust 1.95 or newer (https://rustup.rs) and run this again"
}

# Takes the lock NAME until the script ends, so that two runs do not build the same thing over each other.
only_one() {
  exec 9>"$WHERRY_CACHE/$1.lock"
  flock -n 9 || { say "another run works on $1; waiting for it"; flock 9; }
}
