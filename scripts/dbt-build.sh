#!/usr/bin/env bash
# Runs the dbt package against a lake: `dbt build`, which fails with any of its tests, then the freshness of the sources.
#
#   scripts/dbt-build.sh LAKE
set -euo pipefail

# Resolved once, so that dbt sees one snapshot.
VINCULO_LAKE=$(realpath "$1/current")
export VINCULO_LAKE
cd "$(dirname "$0")/.."
python=$(scripts/python-venv.sh dbt dbt/requirements.txt)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export VINCULO_WAREHOUSE="$work/warehouse.duckdb" DBT_SEND_ANONYMOUS_USAGE_STATS=false DO_NOT_TRACK=1
dbt=("$(dirname "$python")/dbt" --no-use-colors --quiet)
places=(--project-dir dbt --profiles-dir dbt --target-path "$work/target" --log-path "$work/logs")
"${dbt[@]}" build "${places[@]}"
"$python" - "$work/target/run_results.json" <<'PY'
import json, sys

statuses = [result["status"] for result in json.load(open(sys.argv[1]))["results"]]
passed = sum(status in ("pass", "success") for status in statuses)
print(f"dbt-build: {passed} of {len(statuses)} models and tests passed")
sys.exit(0 if passed == len(statuses) >= 100 else 1)
PY
# The days of a demo are simulated ones, so its answers may be old: that is a warning, and no failure.
"${dbt[@]}" source freshness "${places[@]}"
