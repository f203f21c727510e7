#!/usr/bin/env bash
# Makes sure that the commands which the build, the tests and the bench call are on this machine.
#
# A fresh Debian or Ubuntu with Rust has no C compiler and no Python: both are installed with apt-get, as root or through
# a sudo that asks no password. Anywhere else, one sentence says what is missing. Arguments `command:package` add to the list.
set -euo pipefail

# aws-lc (TLS), SQLite and zstd are compiled as C; libstdc++ of g++ is what libduckdb is linked against; nm lists the
# symbols of the prebuilt libduckdb; flock keeps two builds from fetching it at once.
wanted=(cc:gcc c++:g++ ar:binutils nm:binutils make:make flock:util-linux python3:python3 "$@")

missing=()
for pair in "${wanted[@]}"; do
  command -v "${pair%%:*}" > /dev/null || missing+=("${pair##*:}")
done
# gcc alone compiles nothing when it came without the C library's headers.
if command -v cc > /dev/null && ! echo '#include <stdlib.h>' | cc -E -x c - > /dev/null 2>&1; then
  missing+=(libc6-dev)
fi
# Debian's python3 has no pip of its own and cannot make an environment with one; pyenv's can.
python3 -c 'import ensurepip, venv' > /dev/null 2>&1 || missing+=(python3-venv)
[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -n "${SSL_CERT_FILE:-}" ] || missing+=(ca-certificates)

[ ${#missing[@]} -gt 0 ] || exit 0
# Installing gcc also means its headers, and several commands may share a package.
case " ${missing[*]} " in *" gcc "*) missing+=(libc6-dev) ;; esac
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo -n)
if ! command -v apt-get > /dev/null; then
  echo "system-packages: missing what Debian calls: ${missing[*]}. Install them with this system's package manager." >&2
  exit 1
fi
if [ "$(id -u)" != 0 ] && ! sudo -n true 2> /dev/null; then
  echo "system-packages: missing: ${missing[*]}. As root, run: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "system-packages: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
install=("${sudo[@]}" apt-get install -y --no-install-recommends "${missing[@]}")
# The package lists of a fresh machine are empty or old; when they are good, they are not fetched again.
"${install[@]}" < /dev/null > /dev/null 2>&1 || {
  "${sudo[@]}" apt-get update < /dev/null >&2
  "${install[@]}" < /dev/null >&2
}
