#!/usr/bin/env bash
# Measures what the daemon needs for N links, from the first webhook to the published lake, and prints it for 100,000.
#
#   bench/sizing.sh PROGRAM [LINKS]       5,000 unless told otherwise; the simulator runs beside, and is not counted
set -euo pipefail

program=$(realpath "$1")
links=${2:-5000}
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null || true; wait; rm -rf "$folder"' EXIT
cd "$folder"
for name in $(compgen -e | grep '^VINCULO_' || true); do unset "$name"; done
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
belvo=127.0.0.1:$(free) webhooks=127.0.0.1:$(free) admin=127.0.0.1:$(free)

"$program" init --dir . > /dev/null
export VINCULO_BELVO__BASE_URL="http://$belvo" VINCULO_BELVO__TOKEN_URL="http://$belvo"
export VINCULO_BELVO__SECRET_ID=simulated-secret-id VINCULO_BELVO__SECRET_PASSWORD=simulated-secret-password
export VINCULO_BELVO__BUDGET='{ requests = 1000000, per = "30s" }'
export VINCULO_WEBHOOK__LISTEN="$webhooks" VINCULO_WEBHOOK__ALLOW_IPS=127.0.0.1 VINCULO_ADMIN__LISTEN="$admin"
export VINCULO_WEBHOOK__AUTHORIZATION="Bearer of-a-measurement"
rm -r jobs; mkdir jobs
"$program" serve --log-level error & daemon=$!
until "$program" jobs list > /dev/null 2>&1 && [ -d var ]; do
  kill -0 "$daemon"
  sleep 0.2
done
"$program" simulate --listen "$belvo" --people "$links" --no-limit --connect --webhook "http://$webhooks/webhooks/belvo" \
  --webhook-authorization "Bearer of-a-measurement" --webhook-latency 1s > /dev/null 2>&1 &

field() { awk -v name="$1:" '$1 == name { print $2 }' "/proc/$daemon/status"; }
ticks() { awk '{ print $14 + $15 }' "/proc/$daemon/stat"; }
done_when='import json, sys
status = json.load(sys.stdin)
sys.exit(status["links"] < int(sys.argv[1]) or status["waiting"] > 0 or not status["snapshot"]
         or status["snapshot"]["rows"]["link_snapshots"] < 2 * int(sys.argv[1]))'
began=$(date +%s)
until "$program" status --json 2> /dev/null | python3 -c "$done_when" "$links" 2> /dev/null; do
  kill -0 "$daemon"
  sleep 1
done
seconds=$(($(date +%s) - began))
peak=$(field VmHWM) now=$(field VmRSS) cpu=$(($(ticks) * 1000 / $(getconf CLK_TCK)))
"$program" backup state.backup > /dev/null
state=$(stat -c %s state.backup)
lake=$(du --summarize --bytes "$(realpath var/lake/current)" | cut -f 1)
parquet=$(find "$(realpath var/lake/current)" -name '*.parquet' -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
rows=$("$program" sql --csv "SELECT count(*) FROM salaries" | tail -n 1)
python3 - "$links" "$peak" "$now" "$cpu" "$state" "$lake" "$parquet" "$rows" "$seconds" <<'PY'
import sys
links, peak, now, cpu, state, lake, parquet, rows, seconds = map(int, sys.argv[1:])
scale = 100_000 / links
print(f"{links:,} links, {rows:,} months of pay, all new, in {seconds} s beside the simulator\n")
print(f"{'':44}{'measured':>12}{'for 100,000 links':>20}")
def line(what, value, unit, scaled=None):
    print(f"{what:44}{value:>9,.1f} {unit:<3}" + (f"{scaled:>16,.1f} {unit}" if scaled is not None else f"{'(grows slowly)':>20}"))
line("memory, at most", peak / 1024, "MiB")
line("memory, at the end", now / 1024, "MiB")
line("CPU time from webhook to lake", cpu / 1000, "s", cpu / 1000 * scale)
line("state on the disk", state / 2**20, "MiB", state / 2**20 * scale)
line("one snapshot of the lake", lake / 2**20, "MiB", lake / 2**20 * scale)
line("  of it Parquet", parquet / 2**20, "MiB", parquet / 2**20 * scale)
print(f"\nper link: {state / links / 1024:.1f} KiB of state, {lake / links / 1024:.1f} KiB of a snapshot, {cpu / links:.2f} ms of CPU")
PY
