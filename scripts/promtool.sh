#!/usr/bin/env bash
# Prints the path of promtool, taken out of Debian's package `prometheus`. The package itself is not installed: it would
# start a server on the port of `admin.listen`. Elsewhere than on Debian or Ubuntu it prints nothing, and its test is skipped.
set -euo pipefail

dir="${XDG_CACHE_HOME:-$HOME/.cache}/vinculo/promtool"
if command -v promtool; then exit 0; fi
if [ ! -x "$dir/promtool" ]; then
  command -v apt-get > /dev/null || exit 0
  mkdir -p "$dir"
  exec 9> "$dir/lock" && flock 9
  download=$(mktemp -d)
  trap 'rm -rf "$download"' EXIT
  chmod 755 "$download"
  sudo=()
  [ "$(id -u)" = 0 ] || sudo=(sudo -n)
  # The package lists of a fresh machine are empty or old.
  (cd "$download" && { apt-get download prometheus || { "${sudo[@]}" apt-get update && apt-get download prometheus; }; }) < /dev/null >&2
  dpkg-deb --extract "$download"/prometheus_*.deb "$download/root"
  mv "$download/root/usr/bin/promtool" "$dir/promtool"
fi
echo "$dir/promtool"
