"""DuckDB's best way from employment records in NDJSON to three Parquet tables.

    duckdb_flatten.py FILE.ndjson OUT [--threads N]

One employment record a line. Prints {"seconds", "cpu_seconds", "salary_rows", "threads"}; the CPU time is the whole
process's, imports not counted. README.md says which other ways were tried.
"""

import argparse
import json
import os
import pathlib
import resource
import time

import duckdb

# With the types given, DuckDB neither samples the file nor guesses.
RECORD = """{
  id: 'VARCHAR', link: 'VARCHAR', created_at: 'TIMESTAMPTZ', collected_at: 'TIMESTAMPTZ', start_date: 'DATE', end_date: 'DATE',
  employer_data: 'STRUCT(name VARCHAR, code VARCHAR, economic_activity VARCHAR)',
  occupations: 'STRUCT(start_date DATE, end_date DATE, description VARCHAR, name VARCHAR, locale VARCHAR)[]',
  salaries: 'STRUCT(base_amount DECIMAL(19,4), retained_amount DECIMAL(19,4), type VARCHAR, month VARCHAR, currency VARCHAR)[]'
}"""

TABLES = {
    "employments": "SELECT link, id, employer_data.*, start_date, end_date, created_at, collected_at FROM records",
    "occupations": "SELECT link, id, o.* FROM (SELECT link, id, unnest(occupations) AS o FROM records)",
    "salaries": "SELECT link, id, s.* FROM (SELECT link, id, unnest(salaries) AS s FROM records)",
}


def flatten(source, out, threads):
    # Order costs CPU, and nobody asked DuckDB for it.
    db = duckdb.connect(config={"threads": threads, "preserve_insertion_order": False})
    scan = f"read_json(?, format = 'newline_delimited', columns = {RECORD}, maximum_object_size = 67108864)"
    db.execute(f"CREATE TEMP TABLE records AS SELECT * FROM {scan}", [str(source)])
    for table, query in TABLES.items():
        db.execute(f"COPY ({query}) TO '{out / table}.parquet' (FORMAT parquet, COMPRESSION zstd)")
    return int(db.execute("SELECT sum(len(salaries)) FROM records").fetchone()[0] or 0)


def main():
    arguments = argparse.ArgumentParser(description="NDJSON to three Parquet tables with DuckDB, to compare with.")
    arguments.add_argument("source", type=pathlib.Path)
    arguments.add_argument("out", type=pathlib.Path)
    arguments.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    salary_rows = flatten(options.source, options.out, options.threads)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if not salary_rows:
        raise SystemExit(f"duckdb_flatten: no salary rows in {options.source}")
    result = {"seconds": round(seconds, 4), "cpu_seconds": round(cpu_seconds, 4), "salary_rows": salary_rows}
    print(json.dumps({**result, "threads": options.threads}))


if __name__ == "__main__":
    main()
