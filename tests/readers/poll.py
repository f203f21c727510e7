"""Reads a lake again and again while it is published and its daemon is killed, until standard input ends.

    poll.py LAKE

Two readers with pyarrow and two with polars, each every 50 ms: resolve `current` once, read what belongs together, and hold it
against itself. Prints one JSON object: how many reads there were of how many snapshots. The first error ends it with code 1.
"""

import json
import pathlib
import sys
import threading
import time

import polars as pl
import pyarrow.dataset as ds

KEYS = {
    "links": ["link_id"],
    "employments": ["employment_key"],
    "salaries": ["employment_key", "month_text", "salary_type", "seq"],
    "salaries_history": ["employment_key", "month_text", "salary_type", "seq", "known_from"],
}


def with_pyarrow(folder, table):
    return ds.dataset(folder / table, format="parquet").to_table().to_pylist()


def with_polars(folder, table):
    return pl.scan_parquet(folder / table, hive_partitioning=False).collect().to_dicts()


def read(lake, reader):
    """The snapshot's name, once all of it fits together; None before the first."""
    if not (lake / "current").exists():
        return None
    folder = (lake / "current").resolve(strict=True)
    rows = {table: reader(folder, table) for table in KEYS}
    for table, columns in KEYS.items():
        keys = [tuple(row[column] for column in columns) for row in rows[table]]
        assert len(set(keys)) == len(keys), f"{table} of {folder.name} has a key twice"
    manifest = json.loads((folder / "manifest.json").read_text())
    counted = {table["name"]: table["rows"] for table in manifest["tables"]}
    assert all(len(rows[table]) == counted[table] for table in KEYS), f"{folder.name} is of two snapshots"
    assert sum(row["salary_count"] for row in rows["employments"]) == len(rows["salaries"]), f"{folder.name} is mixed"
    links = {row["link_id"] for row in rows["links"]}
    assert all(row["link_id"] in links for row in rows["employments"]), f"{folder.name} is mixed"
    return folder.name


def main(lake):
    done, errors, reads, snapshots = threading.Event(), [], [], set()

    def poll(reader):
        try:
            while not done.is_set():
                name = read(lake, reader)
                if name:
                    reads.append(name)
                    snapshots.add(name)
                time.sleep(0.05)
        except BaseException as error:  # noqa: BLE001, whatever it is, it is the finding
            errors.append(f"{reader.__name__}: {error!r}")

    threads = [threading.Thread(target=poll, args=[reader]) for reader in [with_pyarrow, with_polars] * 2]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    done.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"reads": len(reads), "snapshots": len(snapshots), "errors": errors}))
    return 1 if errors or not reads else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
