"""Checks the check: a small sound lake passes, and each way of spoiling it fails in the line that should notice.

Makes the lakes in a temporary folder without the program. Ends like `check.py`: `N passed, N failed`.
"""

import contextlib
import copy
import datetime
import decimal
import io
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(max(pathlib.Path(sys.prefix).glob("duckdb/*"))))
import duckdb  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

import check  # noqa: E402
from contract import ALSO_IN_DUCKDB, COLUMNS, COUNT, KEYS, VERSIONED  # noqa: E402

AS_OF = pathlib.Path(__file__).parents[2] / "src/sinks/views/as_of.sql"
AT = "2026-11-01T10:00:00.123456Z"


def main():
    passed = failed = 0
    for title, spoil, noticed_by in CASES:
        with tempfile.TemporaryDirectory(prefix="vinculo-selftest-") as folder:
            case = Case()
            spoil(case)
            case.write(pathlib.Path(folder))
            # One DuckDB is enough to see the check turn red.
            versions = ["--duckdb", check.VERSIONS[-1]] if noticed_by else []
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                code = check.main([folder, "--truth", f"{folder}/truth.json", *versions])
        failures = [line for line in said.getvalue().split("\n") if line.startswith("FAIL")]
        if noticed_by is None:
            good = code == 0 and not failures and said.getvalue().endswith(" passed, 0 failed\n")
        else:
            good = code == 1 and any(noticed_by in line for line in failures)
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok  ' if good else 'FAIL'}  {title}", flush=True)
        if not good:
            print(said.getvalue())
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


class Case:
    """A lake of three links as rows, which a test may change before it is written."""

    def __init__(self):
        self.rows = {table: [] for table in COLUMNS}
        for link in ("l-1", "l-2", "l-3"):
            resources = ["EMPLOYMENTS", "OWNERS"]
            self.add("links", link_id=link, external_id=f"user-{link}", fetch_resources=resources, created_at=AT, is_stale=False)
            self.add("owners", link_id=link, owner_id=f"o-{link}", has_email=True, created_at=AT, collected_at=AT, known_from=AT)
            asked = {"resource": "employments", "collected_at": AT, "fetched_at": AT, "item_count": 1, "changed": True}
            self.add("link_snapshots", link_id=link, **asked)
            job = {"link_id": link, "employment_key": f"k-{link}", "employment_id": f"e-{link}", "known_from": AT}
            counts = {"occupation_count": 1, "salary_count": 3}
            self.add("employments", **job, **counts, start_date="2024-02-29", is_open=True, created_at=AT)
            self.add("occupations", **job, seq=0, start_date=None, name="GARÇOM", extra='{"a": 1.10}')
            for month, amount in (("2026-01", "999999999999999.9900"), ("2026-02", "0.0100"), ("2026-13", "1033.0900")):
                first = None if month.endswith("13") else f"{month}-01"
                kind = None if first is None else "REGULAR"
                pay = {"salary_type": kind, "seq": 0, "base_amount": amount, "currency": "BRL"}
                self.add("salaries", **job, **pay, reference_month=first, month_text=month)
        self.truth = {table: copy.deepcopy(rows) for table, rows in self.rows.items() if rows}
        self.versions = lambda row: [{**row, "known_to": None, "is_deleted": False}]
        for row in self.truth["link_snapshots"]:
            row.pop("fetched_at", None)
        self.types, self.sql, self.notes = {}, [], {b"vinculo.schema_version": b"1"}

    def add(self, table, **values):
        self.rows[table].append({name: values.get(name) for name in COLUMNS[table]})

    def write(self, lake):
        snapshot = lake / "snapshots" / "000001"
        db_path = snapshot / "vinculo.duckdb"
        for table in VERSIONED:
            self.rows[f"{table}_history"] = [version for row in self.rows[table] for version in self.versions(row)]
        snapshot.mkdir(parents=True)
        db = duckdb.connect()
        db.execute(f"ATTACH '{db_path}' AS lake (STORAGE_VERSION 'v1.0.0'); USE lake")
        for table, rows in self.rows.items():
            folder = snapshot / table / "link_bucket=0"
            folder.mkdir(parents=True)
            file = folder / "part-0.parquet"
            order = ["link_id", *KEYS[table]]
            rows = sorted(rows, key=lambda row: [(row[name] is not None, str(row[name])) for name in order])
            columns = {}
            for name, kind in COLUMNS[table].items():
                columns[name] = pa.array([self.value(kind, row[name]) for row in rows], self.arrow(table, name, kind))
            data = pa.table(columns).replace_schema_metadata({b"vinculo.table": table.encode(), **self.notes})
            pq.write_table(data, file, compression="zstd")
            db.execute(f"CREATE TABLE {table} AS SELECT * FROM read_parquet('{file}', hive_partitioning = false)")
        for table in ALSO_IN_DUCKDB:
            db.execute(f"CREATE TABLE {table} (link_id VARCHAR)")
        db.execute(AS_OF.read_text())
        db.execute("CREATE VIEW link_health AS SELECT link_id FROM lake.links")
        found = "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = 'lake' AND table_name <> 'link_health'"
        for table, column in db.execute(found).fetchall():
            db.execute(f"COMMENT ON TABLE {table} IS 'a table'; COMMENT ON COLUMN {table}.{column} IS 'a column'")
        db.execute("COMMENT ON VIEW link_health IS 'a view'; COMMENT ON COLUMN link_health.link_id IS 'a column'")
        for statement in self.sql:
            db.execute(statement)
        db.close()
        (snapshot / "manifest.json").write_text("{}")
        (lake / "current").symlink_to("snapshots/000001")
        (lake / "vinculo.duckdb").symlink_to("current/vinculo.duckdb")
        (lake / "truth.json").write_text(json.dumps(self.truth))

    def arrow(self, table, name, kind):
        known = {
            "VARCHAR": pa.string(), "VARCHAR[]": pa.list_(pa.string()), "BOOLEAN": pa.bool_(), COUNT: pa.int32(),
            "DATE": pa.date32(), "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"), "DECIMAL(19,4)": pa.decimal128(19, 4),
        }
        return self.types.get((table.removesuffix("_history"), name), known[kind])

    def value(self, kind, value):
        if value is None:
            return None
        if kind == "DATE":
            return datetime.date.fromisoformat(value)
        if kind.startswith("TIMESTAMP"):
            return datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
        if kind.startswith("DECIMAL"):
            return float(value) if pa.float64() in self.types.values() else decimal.Decimal(value)
        return value


def set_cell(table, row, column, value):
    return lambda case: case.rows[table][row].__setitem__(column, value)


def run_sql(*statements):
    return lambda case: case.sql.extend(statements)


def drop_link(case):
    for table in case.rows:
        case.rows[table] = [row for row in case.rows[table] if row["link_id"] != "l-2"]


def overlap(case):
    end = "2026-11-03T10:00:00.000000Z"
    later = {"known_from": "2026-11-02T10:00:00.000000Z", "known_to": None, "is_deleted": False}
    case.versions = lambda row: [{**row, "known_to": end, "is_deleted": False}, {**row, **later}]


def all_gone(case):
    case.versions = lambda row: [{**row, "known_to": None, "is_deleted": True}]


def empty(case):
    case.rows = {table: [] for table in case.rows}


def repeat_salary(case):
    case.rows["salaries"].append(dict(case.rows["salaries"][0]))
    case.rows["employments"][0]["salary_count"] = 4


def typed(column, kind):
    return lambda case: case.types.__setitem__(("salaries", column), kind)


def no_schema_version(case):
    del case.notes[b"vinculo.schema_version"]


def forget_truth(case):
    case.truth = {"links": case.truth["links"]}


CASES = [
    ("a sound lake passes", lambda case: None, None),
    ("an amount that is a cent off", set_cell("salaries", 1, "base_amount", "0.0200"), "truth of salaries"),
    ("an amount that went through a float", set_cell("salaries", 0, "base_amount", "999999999999999.8750"), "truth of salaries"),
    ("a value where NULL belongs", set_cell("occupations", 0, "start_date", "2024-01-01"), "truth of occupations"),
    ("an instant a microsecond off", set_cell("owners", 2, "created_at", "2026-11-01T10:00:00.123457Z"), "truth of owners"),
    ("a list that lost an item", set_cell("links", 0, "fetch_resources", ["OWNERS"]), "truth of links"),
    ("an unknown field with another number", set_cell("occupations", 0, "extra", '{"a":1.1}'), "truth of occupations"),
    ("a key that is another", set_cell("owners", 0, "owner_id", "o-9"), "missing in the lake"),
    ("a link that is not there at all", drop_link, "truth of employments"),
    ("no rows", empty, "no rows"),
    ("a truth that says nothing", forget_truth, "the truth says nothing about"),
    ("a key twice", repeat_salary, "the key of salaries is unique"),
    ("an amount as a float", typed("base_amount", pa.float64()), "base_amount is DOUBLE"),
    ("an instant without a zone", typed("known_from", pa.timestamp("us")), "known_from is TIMESTAMP"),
    ("a table without a comment", run_sql("COMMENT ON TABLE owners IS NULL"), "no comment on owners"),
    ("a column without a comment", run_sql("COMMENT ON COLUMN owners.has_email IS ''"), "no comment on owners.has_email"),
    ("a view without a comment", run_sql("COMMENT ON VIEW link_health IS NULL"), "no comment on view link_health"),
    ("a view's column without one", run_sql("COMMENT ON COLUMN link_health.link_id IS NULL"), "no comment on link_health.link_id"),
    ("a macro without one", run_sql("CREATE MACRO bare(x) AS x + 1"), "no comment on macro bare"),
    ("a table that is missing", run_sql("DROP TABLE rejected_records"), "missing: rejected_records"),
    ("a column too many", run_sql("ALTER TABLE owners ADD COLUMN cpf VARCHAR"), "columns and types of owners"),
    ("DuckDB and Parquet that differ", run_sql("UPDATE salaries SET base_amount = 1 WHERE seq = 0"), "pyarrow reads the same"),
    ("a salary of no employment", run_sql("DELETE FROM employments WHERE link_id = 'l-1'"), "are not in employments"),
    ("a count that is wrong", set_cell("employments", 0, "salary_count", 2), "salary_count is wrong"),
    ("a view that does not answer", run_sql("ALTER TABLE links RENAME COLUMN link_id TO id"), "every view answers"),
    ("a macro that is missing", run_sql("DROP MACRO TABLE salaries_as_of"), "salaries_as_of knows None rows"),
    ("versions that overlap", overlap, "versions of one key overlap"),
    ("a row that its history says is gone", all_gone, "0 open versions are not the 3 rows"),
    ("a file without its schema version", no_schema_version, "no vinculo.schema_version"),
]

if __name__ == "__main__":
    sys.exit(main())
