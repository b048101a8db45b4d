#!/usr/bin/env bash
# Builds a container image from Debian packages and busybox, as an OCI layout; needs no registry and no builder.
#
#   tests/tools/debian-image.sh nginx|redis|influxdb|busybox|pause     prints the layout's directory
#
# The packages and what they depend on are unpacked, not installed: no maintainer script runs. The result is kept in
# the cache under a name that changes with this script and with the packages' versions.
. "$(dirname "$0")/lib.sh"

name=${1:?which image: nginx, redis, influxdb, busybox or pause}
# What each image is made of: packages, what to leave out of their dependencies (their programs start without), and
# the image config.
without='debconf|iproute2|libbpf1|libelf1|libmnl0|libxtables12|libtirpc.*|libcap2-bin|libgssapi.*|libkrb5.*|libk5.*|libkeyutils1|libcom-err2|libdb5.3|libbsd0'
case $name in
nginx)
  packages=nginx
  config='"Cmd":["nginx","-g","daemon off;"],"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGQUIT"' ;;
redis)
  packages=redis-server
  without+='|dpkg|tar|perl.*|lib.*-perl|libperl.*|libgdbm.*|usrmerge|init-system-helpers|sysvinit-utils|adduser|passwd|libpam.*|lsb-base|libsemanage.*|libsepol2|libaudit.*|libcap-ng0'
  config='"Cmd":["redis-server","--protected-mode","no"],"ExposedPorts":{"6379/tcp":{}}' ;;
influxdb)
  packages=influxdb
  without+='|dpkg|tar|perl.*|lib.*-perl|libperl.*|libgdbm.*|usrmerge|init-system-helpers|sysvinit-utils|adduser|passwd|libpam.*|lsb-base|libsemanage.*|libsepol2|libaudit.*|libcap-ng0'
  config='"Cmd":["influxd"],"ExposedPorts":{"8086/tcp":{}}' ;;
pause)
  packages=
  config='"Entrypoint":["/pause"]' ;;
busybox)
  packages=
  config='"Cmd":["sh"]' ;;
*) die "unknown image $name" ;;
esac

need_packages busybox-static
only_one "image-$name"

closure() { # every package that $packages need on an empty system, as name=version
  [ -n "$packages" ] || return 0
  apt-get -qq -o Dir::State::status=/dev/null install --simulate --no-install-recommends $packages |
    sed -nE 's/^Inst ([^ ]+) \(([^ ]+).*/\1=\2/p' | grep -vE "^($without)="
}
list=$(closure) || { apt-get update -qq; list=$(closure); }
key=$(printf '%s' "$list" | cat - "$0" "$(command -v busybox)" | sha256sum | cut -c1-16)
layout=$WHERRY_CACHE/images/$name-$key
if [ -f "$layout/index.json" ]; then echo "$layout"; exit 0; fi

say "building the $name image"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
# /lib and its kind are links into /usr, as on Debian itself.
mkdir -p "$root"/{etc,root,tmp,run,var/run,usr/bin,usr/sbin,usr/lib,usr/lib64,proc,sys,dev} "$work/debs"
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$root/$dir"; done
chmod 1777 "$root/tmp"
[ -z "$list" ] || (cd "$work/debs" && apt-get -qq -o APT::Sandbox::User=root download $list)
for deb in "$work"/debs/*.deb; do
  [ -e "$deb" ] || continue
  # Through tar, which keeps the links that dpkg-deb -x would replace by directories.
  dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*'
done
install -m 0755 "$(command -v busybox)" "$root/usr/bin/busybox"
chroot "$root" /usr/bin/busybox --list | while read -r applet; do
  [ -e "$root/usr/bin/$applet" ] || ln -s busybox "$root/usr/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nredis:x:101:101::/var/lib/redis:/bin/false\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nadm:x:4:\nwww-data:x:33:\nredis:x:101:\nnogroup:x:65534:\n' >"$root/etc/group"
case $name in
nginx)
  mkdir -p "$root/var/lib/nginx" "$root/var/log/nginx" "$root/var/www/html"
  echo '<h1>Welcome to nginx</h1>' >"$root/var/www/html/index.html"
  ln -sf /dev/stdout "$root/var/log/nginx/access.log"
  ln -sf /dev/stderr "$root/var/log/nginx/error.log"
  printf 'user www-data;\nworker_processes 1;\npid /run/nginx.pid;\nevents { worker_connections 256; }\nhttp {\n  include /etc/nginx/mime.types;\n  access_log /dev/stdout;\n  error_log /dev/stderr;\n  server { listen 80; root /var/www/html; }\n}\n' >"$root/etc/nginx/nginx.conf"
  rm -rf "$root"/etc/nginx/{modules-enabled,sites-enabled,sites-available} ;;
redis) mkdir -p "$root/var/lib/redis" && chown 101:101 "$root/var/lib/redis" ;;
influxdb) mkdir -p "$root/root/.influxdb" ;;
pause) # Nothing but a program that waits for its end.
  rm -rf "${root:?}"/*
  printf '#include <signal.h>\n#include <unistd.h>\nstatic void end(int n) { (void)n; _exit(0); }\nint main(void) { signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }\n' |
    cc -static -Os -s -x c -o "$root/pause" - ;;
esac

out=$work/layout
mkdir -p "$out/blobs/sha256"
# blob FILE: moves a file into the layout and prints its digest and size as JSON members.
blob() {
  local digest; digest=$(sha256sum "$1" | cut -d' ' -f1)
  printf '"digest":"sha256:%s","size":%s' "$digest" "$(stat -c %s "$1")"
  mv "$1" "$out/blobs/sha256/$digest"
}
tar -c -C "$root" --sort=name --mtime=@0 --numeric-owner --format=posix --pax-option=delete=atime,delete=ctime . >"$work/layer.tar"
diff_id=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
gzip -n -6 "$work/layer.tar"
layer=$(blob "$work/layer.tar.gz")
printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],%s},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$config" "$diff_id" >"$work/config"
image=$(blob "$work/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",%s}]}' "$image" "$layer" >"$work/manifest"
manifest=$(blob "$work/manifest")
printf '{"imageLayoutVersion":"1.0.0"}' >"$out/oci-layout"
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"annotations":{"org.opencontainers.image.ref.name":"%s"}}]}' "$manifest" "docker.io/library/$name:latest" >"$out/index.json"
mkdir -p "$WHERRY_CACHE/images"
rm -rf "$WHERRY_CACHE/images/$name"-*
mv "$out" "$layout"
echo "$layout"
