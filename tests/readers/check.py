"""Checks a published lake the way its readers meet it: three versions of DuckDB, pyarrow, polars and pandas.

    check.py LAKE [--truth TRUTH.json] [--allow-empty TABLE]… [--duckdb VERSION]…

Run it with the python that `scripts/readers-python.sh` prints. One line a check, then `N passed, N failed`; exit code 1 when
one failed or none ran. The truth is `{table: [row, …]}`: decimals as text with four decimals, dates YYYY-MM-DD, instants
RFC 3339 with six digits and Z, null, lists as arrays. Without a truth, no value of a row is ever printed.
"""

import argparse
import datetime
import decimal
import json
import pathlib
import subprocess
import sys
import tempfile

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import canonical
import truth
from contract import ALSO_IN_DUCKDB, COLUMNS, COUNT, INTEGERS, KEYS, PARTITION_KEY, SIGHTINGS, VERSIONED

HERE = pathlib.Path(__file__).parent
VERSIONS = [line for line in (HERE / "duckdb-versions.txt").read_text().split("\n") if line and not line.startswith("#")]

passed = failed = 0


def main(argv):
    global passed, failed
    passed = failed = 0
    arguments = argparse.ArgumentParser(description="Checks a published lake the way its readers meet it.")
    arguments.add_argument("lake", type=pathlib.Path)
    arguments.add_argument("--truth", type=pathlib.Path, help="JSON file of what each table should hold")
    arguments.add_argument("--allow-empty", action="append", default=[], metavar="TABLE", help="this table may have no rows")
    arguments.add_argument("--duckdb", action="append", choices=VERSIONS, help="only this version; all unless told")
    options = arguments.parse_args(argv)

    check("the lake has a current snapshot", is_published, options.lake)
    with tempfile.TemporaryDirectory(prefix="vinculo-readers-") as scratch:
        dumps = {v: check(f"DuckDB {v} opens the file", dump, v, options.lake, scratch) for v in options.duckdb or VERSIONS}
    dumps = {version: each for version, each in dumps.items() if each}
    for version, each in dumps.items():
        check_duckdb(version, each, options.allow_empty)
    if not dumps:
        return finish()

    newest = list(dumps.values())[-1]
    reference = {table: rows for table, rows in newest["rows"].items() if table in COLUMNS}
    for version, each in dumps.items():
        for table in COLUMNS:
            check(f"{table}: same rows in DuckDB {version} and its read_parquet", same_rows, table, each, reference)
    for table in COLUMNS:
        if reference.get(table) or table not in options.allow_empty:
            check_parquet(table, options.lake / "current" / table, reference.get(table, []))
    check("every child row has its employment, and the counts agree", children_agree, reference)
    for table in VERSIONED:
        check(f"{table}: its history holds it, and no version overlaps another", history_agrees, table, reference)
    if options.truth:
        check_truth(options.truth, reference, options.allow_empty)
    return finish()


def check(title, function, *arguments):
    """Runs one check: an exception is its failure, and its answer goes into the printed line. Gives the answer."""
    global passed, failed
    try:
        answer = function(*arguments)
    except Exception as error:
        failed += 1
        text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        print(f"FAIL  {title}: {text}", flush=True)
        return None
    passed += 1
    print(f"ok    {title}" + (f" ({answer})" if isinstance(answer, str) else ""), flush=True)
    return answer


def finish():
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if passed and not failed else 1


def is_published(lake):
    current = lake / "current"
    assert current.is_symlink(), "current is not a symlink"
    assert current.resolve().parent == (lake / "snapshots").resolve(), "current does not point into snapshots/"
    assert (lake / "vinculo.duckdb").resolve() == current.resolve() / "vinculo.duckdb", "vinculo.duckdb is not current's"
    json.loads((current / "manifest.json").read_text())
    return current.resolve().name


# --- DuckDB -----------------------------------------------------------------------------------------------------------


def dump(version, lake, scratch):
    package = pathlib.Path(sys.prefix) / "duckdb" / version
    assert package.is_dir(), f"not installed; run {sys.argv[0]} with the python that scripts/readers-python.sh prints"
    out = pathlib.Path(scratch) / version
    out.mkdir()
    command = [sys.executable, str(HERE / "duckdb_dump.py"), str(package), str(lake), str(out)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr.strip().split("\n")[-1]
    seen = json.loads((out / "facts.json").read_text())
    assert seen["version"] == version, f"found {seen['version']}"
    seen["rows"], seen["parquet"] = {}, {}
    for table in (table for table in COLUMNS if table in seen["tables"]):
        names = [name for name in COLUMNS[table] if [table, name] in [c[:2] for c in seen["columns"]]]
        seen["rows"][table] = canonical.rows(arrow_file(out / f"{table}.arrow"), names)
        if (out / f"{table}.parquet.arrow").exists():
            seen["parquet"][table] = canonical.rows(arrow_file(out / f"{table}.parquet.arrow"), names)
    return seen


def arrow_file(path):
    with pa.OSFile(str(path), "rb") as source:
        return pa.ipc.open_file(source).read_all()


def check_duckdb(version, seen, allow_empty):
    def every_table_is_there():
        missing = [table for table in [*COLUMNS, *ALSO_IN_DUCKDB] if table not in seen["tables"]]
        assert not missing, f"missing: {', '.join(missing)}"
        return f"{len(seen['tables'])} tables"

    def everything_has_a_comment():
        bare = [table for table, comment in seen["tables"].items() if not (comment or "").strip()]
        bare += [f"{table}.{column}" for table, column, _, comment in seen["columns"] if not (comment or "").strip()]
        bare += [what for what, comment in seen["described"].items() if not (comment or "").strip()]
        assert not bare, f"no comment on {', '.join(bare)}"
        assert seen["columns"], "no columns"
        macros = sum(what.startswith("macro ") for what in seen["described"])
        return f"{len(seen['tables'])} tables, {len(seen['columns'])} columns, {len(seen['views'])} views, {macros} macros"

    def columns_are_as_promised(table):
        found = {column: kind for name, column, kind, _ in seen["columns"] if name == table}
        assert list(found) == list(COLUMNS[table]), f"columns {list(found)}, promised {list(COLUMNS[table])}"
        wrong = [
            f"{name} is {found[name]}, promised {'an integer' if kind == COUNT else kind}"
            for name, kind in COLUMNS[table].items()
            if not (found[name] in INTEGERS if kind == COUNT else found[name] == kind)
        ]
        assert not wrong, "; ".join(wrong)

    def keys_are_unique(table):
        rows, columns = seen["rows"][table], list(COLUMNS[table])
        assert rows or table in allow_empty, "no rows"
        at = [columns.index(name) for name in KEYS[table]]
        keys = {tuple(row[i] for i in at) for row in rows}
        assert len(keys) == len(rows), f"{len(rows) - len(keys)} of {len(rows)} rows repeat a key"
        never = [i for i in at if columns[i] in ("link_id", "employment_key", "owner_id", "seq")] + [0]
        assert all(row[i] is not None for row in rows for i in never), "a key column is NULL"
        return f"{len(rows)} rows"

    def views_answer():
        broken = {view: answer for view, answer in seen["views"].items() if not isinstance(answer, int)}
        assert not broken, "; ".join(f"{view}: {answer}" for view, answer in broken.items())
        return f"{len(seen['views'])} views"

    def as_of_macros_answer():
        for table in ("employments", "salaries"):
            known = seen["as_of"].get(f"{table}_as_of")
            assert known == len(seen["rows"][table]), f"{table}_as_of knows {known} rows, {table} {len(seen['rows'][table])}"

    def features_are_those_of_the_macro():
        wrong = {run: other for run, (_, other) in seen["features"].items() if other}
        assert not wrong, f"rows that differ: {wrong}"
        return f"{sum(rows for rows, _ in seen['features'].values())} rows of {len(seen['features'])} runs"

    check(f"DuckDB {version}: the macro computes what is published", features_are_those_of_the_macro)
    check(f"DuckDB {version}: every table is there", every_table_is_there)
    check(f"DuckDB {version}: what is known at the end of time is what is current", as_of_macros_answer)
    check(f"DuckDB {version}: everything has a comment", everything_has_a_comment)
    check(f"DuckDB {version}: every view answers", views_answer)
    for table in COLUMNS:
        check(f"DuckDB {version}: columns and types of {table}", columns_are_as_promised, table)
        check(f"DuckDB {version}: the key of {table} is unique", keys_are_unique, table)


def same_rows(table, seen, reference):
    expected = len(reference[table]), canonical.checksum(reference[table])
    found = {"table": seen["rows"][table]}
    if table in seen["parquet"] or reference[table]:
        found["read_parquet"] = seen["parquet"][table]
    for name, rows in found.items():
        same = (len(rows), canonical.checksum(rows)) == expected
        assert same, f"{name} has {len(rows)} rows, expected {expected[0]}, or values differ"
    return f"{expected[0]} rows, checksum {expected[1][:12]}"


# --- Parquet readers --------------------------------------------------------------------------------------------------


def check_parquet(table, folder, reference):
    names = list(COLUMNS[table])
    expected = len(reference), canonical.checksum(reference)

    def compare(arrow):
        arrow = arrow.drop_columns([PARTITION_KEY])
        assert arrow.column_names == names, f"columns {arrow.column_names}, promised {names}"
        rows = canonical.rows(arrow, names)
        assert rows, "no rows"
        assert (len(rows), canonical.checksum(rows)) == expected, f"{len(rows)} rows, DuckDB has {expected[0]}, or values differ"
        if "base_amount" not in names:
            return f"{len(rows)} rows"
        at = names.index("base_amount")
        total = [sum(decimal.Decimal(row[at]) for row in each if row[at] is not None) for each in (rows, reference)]
        assert total[0] == total[1], "the sums of base_amount differ"
        return f"{len(rows)} rows, sums of base_amount equal"

    def with_pyarrow():
        arrow = ds.dataset(folder, format="parquet", partitioning="hive").to_table()
        for name, kind in arrow_types(table).items():
            assert plain(arrow.schema.field(name).type) in kind, f"{name} is {arrow.schema.field(name).type}"
        return compare(arrow)

    def with_polars():
        frame = pl.scan_parquet(str(folder / "**" / "*.parquet"), hive_partitioning=True).collect()
        if table == "salaries":
            promised = {"base_amount": pl.Decimal(19, 4), "reference_month": pl.Date(), "known_from": pl.Datetime("us", "UTC")}
            for name, kind in promised.items():
                assert frame.schema[name] == kind, f"{name} is {frame.schema[name]}"
            exact = sum(frame["base_amount"].drop_nulls().to_list(), decimal.Decimal(0))
            assert frame["base_amount"].sum() == exact, "polars' own sum is not exact"
        return compare(frame.to_arrow())

    def with_pandas():
        frame = pd.read_parquet(folder)
        if table == "salaries":
            amounts, months = frame["base_amount"].dropna(), frame["reference_month"].dropna()
            assert len(amounts) and all(type(v) is decimal.Decimal for v in amounts), "base_amount is not Decimal"
            assert len(months) and all(type(v) is datetime.date for v in months), "reference_month is not date"
            assert frame["known_from"].dtype == pd.DatetimeTZDtype("us", "UTC"), f"known_from is {frame['known_from'].dtype}"
        typed = pd.read_parquet(folder, dtype_backend="pyarrow")
        for name, kind in arrow_types(table).items():
            assert plain(typed[name].dtype.pyarrow_dtype) in kind, f"{name} is {typed[name].dtype}"
        return compare(pa.Table.from_pandas(typed, preserve_index=False))

    check(f"{table}: its files are as promised", files_are_as_promised, table, folder)
    check(f"{table}: pyarrow reads the same", with_pyarrow)
    check(f"{table}: polars reads the same", with_polars)
    check(f"{table}: pandas reads the same", with_pandas)


def arrow_types(table):
    """The Arrow types that a column of each promised type may have."""
    text = {pa.string(), pa.large_string()}
    promised = {
        "VARCHAR": text, "DATE": {pa.date32()}, "TIMESTAMP WITH TIME ZONE": {pa.timestamp("us", "UTC")},
        "DECIMAL(19,4)": {pa.decimal128(19, 4)}, "BOOLEAN": {pa.bool_()},
        "VARCHAR[]": {make(kind) for kind in text for make in (pa.list_, pa.large_list)},
        COUNT: {pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()},
    }
    return {name: promised[kind] for name, kind in COLUMNS[table].items()}


def plain(kind):
    """A list type without the name of its items, which differs between writers."""
    return pa.list_(kind.value_type) if pa.types.is_list(kind) else kind


def files_are_as_promised(table, folder):
    files = sorted(folder.glob("**/*.parquet"))
    assert files, "no files"
    for path in files:
        name = path.relative_to(folder)
        assert path.parent.name.startswith(f"{PARTITION_KEY}="), f"{name} is in no {PARTITION_KEY}= folder"
        file = pq.ParquetFile(path)
        assert PARTITION_KEY not in file.schema_arrow.names, f"{name} repeats {PARTITION_KEY} as a column"
        notes = file.schema_arrow.metadata or {}
        notes = {**notes, **(file.metadata.metadata or {})}
        assert notes.get(b"vinculo.table") == table.encode(), f"{name}: vinculo.table is {notes.get(b'vinculo.table')}"
        assert notes.get(b"vinculo.schema_version"), f"{name}: no vinculo.schema_version"
        for group in range(file.metadata.num_row_groups):
            for column in range(file.metadata.num_columns):
                codec = file.metadata.row_group(group).column(column).compression
                assert codec == "ZSTD", f"{name}: a column is {codec}"
        order = ["link_id", *(key for key in KEYS[table] if key != "link_id")]
        rows = canonical.rows(file.read(columns=order), order)
        assert is_sorted(rows), f"{name} is not sorted by {', '.join(order)}"
    return f"{len(files)} files"


def is_sorted(rows):
    """Whether the rows rise, with NULL either always first or always last."""
    for null_rank in (0, 2):
        keys = [[(null_rank, 0) if v is None else (1, v) for v in row] for row in rows]
        if all(a <= b for a, b in zip(keys, keys[1:])):
            return True
    return False


# --- between tables, and against the truth ----------------------------------------------------------------------------


def children_agree(reference):
    jobs = [dict(zip(COLUMNS["employments"], row)) for row in reference["employments"]]
    for table, count in (("occupations", "occupation_count"), ("salaries", "salary_count")):
        found = {}
        for row in reference[table]:
            row = dict(zip(COLUMNS[table], row))
            at = row["link_id"], row["employment_key"], row["employment_id"]
            found[at] = found.get(at, 0) + 1
        told = {(j["link_id"], j["employment_key"], j["employment_id"]): j[count] for j in jobs}
        orphans = found.keys() - told.keys()
        assert not orphans, f"{len(orphans)} employments of {table} are not in employments"
        wrong = [at for at in told if told[at] != found.get(at, 0)]
        assert not wrong, f"{count} is wrong in {len(wrong)} of {len(told)} employments"
    links = {row[0] for row in reference["links"]}
    strangers = {row[0] for table in reference for row in reference[table]} - links
    assert not strangers, f"{len(strangers)} link_ids are not in links"
    return f"{len(jobs)} employments"


def history_agrees(table, reference):
    history, columns = reference[f"{table}_history"], list(COLUMNS[f"{table}_history"])
    begin, end, gone = (columns.index(name) for name in ("known_from", "known_to", "is_deleted"))
    key = [columns.index(name) for name in KEYS[table]]
    versions = {}
    for row in history:
        versions.setdefault(tuple(row[at] for at in key), []).append(row)
    for rows in versions.values():
        rows.sort(key=lambda row: row[begin])
        for earlier, later in zip(rows, rows[1:]):
            assert earlier[end] == later[begin] and earlier[begin] < later[begin], "versions of one key overlap, or leave a gap"
        assert rows[-1][end] is None, "the last version of a key has an end"
    kept = [name for name in COLUMNS[table] if name not in SIGHTINGS]
    open_ends = [tuple(row[columns.index(name)] for name in kept) for row in history if row[end] is None and not row[gone]]
    current = [tuple(row[list(COLUMNS[table]).index(name)] for name in kept) for row in reference[table]]
    same = (len(open_ends), canonical.checksum(open_ends)) == (len(current), canonical.checksum(current))
    assert same, f"{len(open_ends)} open versions are not the {len(current)} rows"
    return f"{len(history)} versions of {len(versions)} rows"


def check_truth(path, reference, allow_empty):
    expected = json.loads(path.read_text(), parse_float=str)

    def tables_are_named():
        strange = expected.keys() - COLUMNS.keys()
        assert not strange, f"the truth has tables that the lake does not know: {', '.join(sorted(strange))}"
        must = {"employments", "occupations", "salaries", "owners"} - set(allow_empty)
        missing = sorted(table for table in must if not expected.get(table))
        assert not missing, f"the truth says nothing about {', '.join(missing)}"

    def table_is_true(table):
        lake = [dict(zip(COLUMNS[table], row)) for row in reference[table]]
        assert expected[table] or table in allow_empty, "the truth has no rows"
        if not expected[table]:
            assert not lake, f"the lake has {len(lake)} rows, the truth none"
            return "no rows"
        differences, columns, by = truth.compare(lake, expected[table], KEYS[table])
        shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
        assert not differences, shown
        return f"{len(lake)} rows by {', '.join(by)}: {', '.join(columns)}"

    check("the truth speaks of the right tables", tables_are_named)
    for table in (table for table in COLUMNS if table in expected):
        check(f"truth of {table}", table_is_true, table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
