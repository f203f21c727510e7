#!/usr/bin/env bash
# Installs a .deb in a fresh root of Debian, runs `vinculo check` there, removes it, and sees that data is left alone.
#
#   packaging/test-deb.sh FILE.deb        as root; a minute and 400 MB in /tmp
set -euo pipefail

deb=$(realpath "$1")
[ "$(id -u)" = 0 ] || exec sudo -n "$0" "$@"
"$(dirname "$0")/../scripts/system-packages.sh" debootstrap:debootstrap
root=$(mktemp -d)
chmod 755 "$root"
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
as_vinculo() { inside setpriv --reuid vinculo --regid vinculo --clear-groups "$@"; }
say() { echo "test-deb: $*"; }
fail() { say "$*"; exit 1; }
trap 'rm -rf --one-file-system "$root"' EXIT
trap 'say "line $LINENO failed"' ERR

# The same system and the same mirror as here.
release=$(. /etc/os-release; echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/vinculo/debootstrap"
mkdir -p "$cache"
say "making a root of $release"
log="$root.log"
debootstrap --variant=minbase --cache-dir="$cache" --include=libstdc++6,ca-certificates "$release" "$root" "$mirror" > "$log" 2>&1 || { tail -n 20 "$log"; exit 1; }
rm -f "$log"

cp "$deb" "$root/vinculo.deb"
inside dpkg --install /vinculo.deb
inside vinculo --version
[ "$(inside stat -c '%U %G %a' /var/lib/vinculo)" = "vinculo vinculo 750" ]
[ "$(inside stat -c '%U %a' /etc/vinculo/credentials)" = "root 700" ]
[ "$(inside stat -c '%U %a' /etc/vinculo/credentials/encryption_key)" = "root 600" ]
key=$(inside cat /etc/vinculo/credentials/encryption_key)
say "installed"

# Without Belvo's keys the check names exactly them.
code=0
complaint=$(inside CREDENTIALS_DIRECTORY=/etc/vinculo/credentials vinculo check 2>&1) || code=$?
[ "$code" = 4 ] || fail "vinculo check ended with $code and not with 4: $complaint"
for wanted in belvo.secret_id belvo.secret_password webhook.authorization; do
  grep -q "$wanted" <<< "$complaint" || fail "vinculo check does not name $wanted: $complaint"
done
inside sh -c 'cd /etc/vinculo/credentials; for name in belvo_secret_id belvo_secret_password webhook_authorization; do echo "of-a-test-$name-and-nobody" > $name; done'
inside CREDENTIALS_DIRECTORY=/etc/vinculo/credentials vinculo check
say "vinculo check is content"

# The program works there, as its own user, on nothing but what the package brought.
as_vinculo vinculo demo --people 5 --dir /var/lib/vinculo/demo > "$root/demo.log" 2>&1 || { tail -n 20 "$root/demo.log"; exit 1; }
inside sh -c 'find /var/lib/vinculo -type f | sort | xargs sha256sum' > "$root/before"
[ -s "$root/before" ]
inside sh -c 'echo "# mine" >> /etc/vinculo/vinculo.toml'

inside dpkg --remove vinculo
if inside test -e /usr/bin/vinculo; then fail "the program is there after its removal"; fi
inside sh -c 'find /var/lib/vinculo -type f | sort | xargs sha256sum' | cmp - "$root/before"
inside grep -q '# mine' /etc/vinculo/vinculo.toml
say "removal left data and configuration alone"

inside dpkg --install /vinculo.deb
inside grep -q '# mine' /etc/vinculo/vinculo.toml
[ "$(inside cat /etc/vinculo/credentials/encryption_key)" = "$key" ]
inside dpkg --purge vinculo
if inside test -e /etc/vinculo/vinculo.toml; then fail "the configuration is there after a purge"; fi
inside sh -c 'find /var/lib/vinculo -type f | sort | xargs sha256sum' | cmp - "$root/before"
[ "$(inside cat /etc/vinculo/credentials/encryption_key)" = "$key" ]
say "a second installation kept the configuration and the keys, and a purge left data and keys"
