"""One form for rows, whichever reader they came from: exact, and comparable as text.

Takes an Arrow table. Gives rows of None, bool, int, str or list: decimals with all their digits, dates as YYYY-MM-DD,
instants in UTC with six digits and Z. No value passes through a float on the way, and a float never equals a decimal.
"""

import datetime
import hashlib

import pyarrow as pa
import pyarrow.compute as pc

EPOCH = datetime.datetime(1970, 1, 1)


def rows(table, columns):
    """The named columns of `table`, as a list of tuples."""
    return list(zip(*(_column(table.column(name)) for name in columns))) if table.num_rows else []


def checksum(row_list):
    """The same for the same rows in any order; a repeated row counts each time."""
    total = 0
    for row in row_list:
        total += int.from_bytes(hashlib.blake2b(repr(row).encode(), digest_size=16).digest(), "big")
    return f"{total % (1 << 128):032x}"


def _column(column):
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_floating(kind):
        return [None if v is None else f"float {v!r}" for v in column.to_pylist()]
    if pa.types.is_timestamp(kind):
        # An integer, not a Python datetime: that needs a time zone database, and drops nothing silently.
        ticks = column.cast(pa.timestamp("us", kind.tz)).cast(pa.int64()).to_pylist()
        return [None if v is None else _instant(v) for v in ticks]
    if pa.types.is_date(kind):
        return [None if v is None else v.isoformat() for v in column.to_pylist()]
    if pa.types.is_decimal(kind):
        return pc.cast(column, pa.string()).to_pylist()
    return column.to_pylist()


def _instant(microseconds):
    return (EPOCH + datetime.timedelta(microseconds=microseconds)).isoformat(timespec="microseconds") + "Z"
