"""Opens `vinculo.duckdb` read-only with one version of DuckDB and writes down what it sees; a process per version.

    duckdb_dump.py FOLDER_OF_THE_DUCKDB_PACKAGE LAKE OUT

Writes OUT/facts.json (version, tables with comments, columns with types and comments, views with row counts or the error)
and, for each table, its rows as OUT/<table>.arrow and the rows of its Parquet files as OUT/<table>.parquet.arrow.
"""

import json
import pathlib
import sys

package, lake, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
sys.path.insert(0, package)

import duckdb  # noqa: E402  (the path decides which one)
import pyarrow as pa  # noqa: E402

# An analyst behind a firewall cannot fetch extensions: the file must open without.
offline = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
db = duckdb.connect(str(lake / "vinculo.duckdb"), read_only=True, config=offline)


def save(name, query):
    result = db.execute(query)
    table = result.to_arrow_table() if hasattr(result, "to_arrow_table") else result.fetch_arrow_table()
    with pa.OSFile(str(out / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


tables = dict(db.execute("SELECT table_name, comment FROM duckdb_tables() WHERE NOT internal").fetchall())
columns = db.execute(
    "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE NOT internal "
    "AND table_name IN (SELECT table_name FROM duckdb_tables()) ORDER BY table_name, column_index"
).fetchall()

# Whatever else analysts may see: views, their columns, macros.
described = dict(
    db.execute(
        "SELECT 'view ' || view_name, comment FROM duckdb_views() WHERE NOT internal "
        "UNION ALL SELECT table_name || '.' || column_name, comment FROM duckdb_columns() WHERE NOT internal "
        "AND table_name IN (SELECT view_name FROM duckdb_views()) "
        "UNION ALL SELECT 'macro ' || function_name, any_value(comment) FROM duckdb_functions() "
        "WHERE NOT internal AND function_type IN ('macro', 'table_macro') GROUP BY function_name, function_type"
    ).fetchall()
)

views = {}
for (view,) in db.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall():
    try:
        views[view] = db.execute(f'SELECT count(*) FROM (SELECT * FROM "{view}")').fetchone()[0]
    except duckdb.Error as error:
        views[view] = str(error)

# Rows that each as-of macro knows at the end of time: those of its current table.
as_of = {}
for (macro,) in db.execute("SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_name LIKE '%\\_as\\_of' ESCAPE '\\'").fetchall():
    as_of[macro] = db.execute(f"SELECT count(*) FROM {macro}(TIMESTAMPTZ '9999-01-01 00:00:00+00')").fetchone()[0]

# Rows of each published run of features that the macro does not give, or gives otherwise.
features = {}
if "credit_features" in tables:
    runs = db.execute(
        "SELECT DISTINCT CAST(as_of_date AS VARCHAR), epoch_us(known_at), lag_months, pit_mode FROM credit_features"
    ).fetchall()
    for date, known, lag_months, mode in runs:
        published = f"SELECT * FROM credit_features WHERE as_of_date = DATE '{date}' AND pit_mode = '{mode}'"
        computed = f"SELECT * FROM credit_features(DATE '{date}', make_timestamptz({known}::BIGINT), {lag_months})"
        both = f"({published} EXCEPT ALL {computed}) UNION ALL ({computed} EXCEPT ALL {published})"
        rows, other = (db.execute(f"SELECT count(*) FROM ({sql})").fetchone()[0] for sql in (published, both))
        features[f"{date} {mode}"] = [rows, other]

for table in tables:
    save(table, f'SELECT * FROM "{table}"')
    if (lake / "current" / table).is_dir():
        files = str(lake / "current" / table / "*" / "*.parquet").replace("'", "''")
        save(f"{table}.parquet", f"SELECT * FROM read_parquet('{files}', hive_partitioning = true)")

facts = {"version": duckdb.__version__, "tables": tables, "columns": columns, "views": views, "described": described}
facts |= {"as_of": as_of, "features": features}
(out / "facts.json").write_text(json.dumps(facts))
