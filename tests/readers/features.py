"""Computes `credit_features` of the made-up people of tests/fixtures/features with one version of DuckDB, from the same SQL
files that the program is built from, and compares every value with what was worked out by hand.

    features.py FOLDER_OF_THE_DUCKDB_PACKAGE

Prints a line for each case and ends with 1 when a value differs.
"""

import csv
import datetime
import decimal
import json
import pathlib
import sys

sys.path.insert(0, sys.argv[1])

import duckdb  # noqa: E402  (the path decides which one)

from contract import COLUMNS  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SQL = ROOT / "src" / "features" / "sql"
REFERENCE = ROOT / "src" / "reference"
PEOPLE = ROOT / "tests" / "fixtures" / "features"

REFERENCE_TABLES = {
    "ref_inss": "valid_from DATE, valid_to DATE, method VARCHAR, bracket INTEGER, lower_amount DECIMAL(19,4), "
    "upper_amount DECIMAL(19,4), rate DECIMAL(5,4), teto DECIMAL(19,4), accumulated_amount DECIMAL(19,6), act VARCHAR",
    "ref_minimum_wage": "valid_from DATE, valid_to DATE, amount DECIMAL(19,4)",
    "ref_consignado_margin": "valid_from DATE, valid_to DATE, regime VARCHAR, loan_rate DECIMAL(5,4), "
    "card_rate DECIMAL(5,4), benefit_card_rate DECIMAL(5,4), act VARCHAR",
    "inss_given": "valid_from DATE, valid_to DATE, method VARCHAR, upper_amount DECIMAL(19,4), rate DECIMAL(5,4), act VARCHAR",
}


def main():
    offline = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    db = duckdb.connect(config=offline)
    build(db)
    expected = json.loads((PEOPLE / "expected.json").read_text())
    differences = 0
    for base, month, contribution in expected["inss_expected"]:
        found = db.execute("SELECT inss_expected(CAST($1 AS DECIMAL(19,4)), CAST($2 AS DATE))", [base, month]).fetchone()[0]
        differences += report(f"inss_expected({base}, {month})", {"": contribution}, {"": as_written(found)})
    for valid_from, bracket, *amounts in expected["ref_inss"]:
        columns = "lower_amount, upper_amount, rate, teto, accumulated_amount"
        found = db.execute(f"SELECT {columns} FROM ref_inss WHERE valid_from = $1 AND bracket = $2", [valid_from, bracket])
        found = [as_written(amount) for amount in found.fetchone()]
        differences += report(f"ref_inss {valid_from}, bracket {bracket}", {"": amounts}, {"": found})
    runs = {}
    for case in expected["cases"]:
        run = (case["as_of"], case["known"], case["lag_months"])
        if run not in runs:
            runs[run] = features(db, *run)
        differences += report(case["name"], case["expected"], runs[run][case["link_id"]])
    print(f"features.py: DuckDB {duckdb.__version__}: {len(expected['cases'])} cases, {differences} values differ")
    return 1 if differences else 0


def build(db):
    kinds = {"COUNT": "INTEGER"}
    for table in ("links", "link_snapshots"):
        columns = [f"{name} {kinds.get(kind, kind)}" for name, kind in COLUMNS[table].items()]
        db.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
    for table in ("employments", "salaries", "occupations"):
        columns = [f"{name} {kinds.get(kind, kind)}" for name, kind in COLUMNS[table].items()]
        columns += ["known_to TIMESTAMP WITH TIME ZONE", "is_deleted BOOLEAN"]
        db.execute(f"CREATE TABLE {table}_history ({', '.join(columns)})")
    for table, columns in REFERENCE_TABLES.items():
        db.execute(f"CREATE TABLE {table} ({columns})")
    for table, file in (("inss_given", "inss"), ("ref_minimum_wage", "minimum_wage"), ("ref_consignado_margin", "consignado_margin")):
        names = [column.split()[0] for column in REFERENCE_TABLES[table].split(", ")]
        with open(REFERENCE / f"{file}.csv", newline="") as rows:
            values = [[row[name] or None for name in names] for row in csv.DictReader(rows)]
        db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", values)
    db.execute((REFERENCE / "ref_inss.sql").read_text())
    # Those that others are made of come first.
    first = ["month_number", "month_date", "rounded_units", "rounded_ratio", "inss_in_bracket"]
    for name in first + sorted(path.stem for path in (SQL / "macros").iterdir() if path.stem not in first):
        db.execute((SQL / "macros" / f"{name}.sql").read_text())
    *steps, row = [path.read_text() for path in sorted((SQL / "credit_features").iterdir())]
    db.execute(f"CREATE MACRO credit_features(as_of, known, lag_months) AS TABLE WITH {','.join(steps)} {row}")
    db.execute((PEOPLE / "people.sql").read_text())


def features(db, as_of, known, lag_months):
    """The rows of a run, by link."""
    result = db.execute(
        f"SELECT * EXCLUDE (known_at) FROM credit_features(DATE '{as_of}', TIMESTAMPTZ '{known}', {lag_months})"
    )
    names = [column[0] for column in result.description]
    rows = [{name: as_written(value) for name, value in zip(names, row)} for row in result.fetchall()]
    by_link = {row["link_id"]: row for row in rows}
    assert len(by_link) == len(rows), f"{len(rows)} rows of {len(by_link)} links"
    return by_link


def as_written(value):
    if isinstance(value, decimal.Decimal):
        return str(value)
    return value.isoformat() if isinstance(value, datetime.date) else value


def report(name, expected, found):
    wrong = {column: (found.get(column), value) for column, value in expected.items() if found.get(column) != value}
    for column, (value, right) in wrong.items():
        print(f"  {name}: {column} is {value}, expected {right}")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
