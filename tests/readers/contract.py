"""What analysts were promised about each table: its columns in order, their types, and its key.

Written down here a second time, apart from `schemas/`, on purpose: a schema file that changes by accident must not change
the check with it.
"""

TEXT, DATE, INSTANT, MONEY, FLAG, COUNT = "VARCHAR", "DATE", "TIMESTAMP WITH TIME ZONE", "DECIMAL(19,4)", "BOOLEAN", "COUNT"
TEXTS = "VARCHAR[]"

# A count may be any integer type.
INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}


def _columns(text):
    """`name name:TYPE …` → {name: type}; text where nothing is said, INSTANT for `_at`, DATE for `_date`."""
    named = {"text": TEXT, "texts": TEXTS, "date": DATE, "instant": INSTANT, "money": MONEY, "flag": FLAG, "count": COUNT}
    columns = {}
    for word in text.split():
        name, _, kind = word.partition(":")
        default = "instant" if name.endswith("_at") else "date" if name.endswith("_date") else "text"
        columns[name] = named[kind or default]
    return columns


COLUMNS = {
    "links": _columns(
        "link_id external_id person_key institution access_mode status refresh_rate credentials_storage stale_in "
        "fetch_resources:texts created_at last_accessed_at employments_collected_at owners_collected_at last_fetched_at "
        "last_webhook_at next_refresh_at is_stale:flag"
    ),
    "employments": _columns(
        "link_id employment_key employment_id employer_name employer_code employer_code_type employer_key "
        "economic_activity cnae_class cnae_division cnae_section start_date end_date is_open:flag occupation_count:count "
        "salary_count:count created_at collected_at extra known_from:instant"
    ),
    "occupations": _columns(
        "link_id employment_key employment_id seq:count start_date end_date description name cbo_code cbo_family "
        "cbo_major_group locale extra known_from:instant"
    ),
    "salaries": _columns(
        "link_id employment_key employment_id reference_month:date month_text salary_type seq:count base_amount:money "
        "retained_amount:money currency extra known_from:instant"
    ),
    "owners": _columns(
        "link_id owner_id person_key document_type has_document:flag has_email:flag has_phone_number:flag "
        "has_address:flag created_at collected_at known_from:instant"
    ),
    "link_snapshots": _columns(
        "link_id resource collected_at fetched_at item_count:count webhook_count:count changed:flag"
    ),
}

KEYS = {
    "links": ["link_id"],
    "employments": ["employment_key"],
    "occupations": ["employment_key", "start_date", "name", "seq"],
    "salaries": ["employment_key", "month_text", "salary_type", "seq"],
    "owners": ["link_id", "owner_id"],
    "link_snapshots": ["link_id", "resource", "fetched_at"],
}

# Tables whose rows have versions.
VERSIONED = ["employments", "occupations", "salaries", "owners"]

for _table in VERSIONED:
    COLUMNS[f"{_table}_history"] = {**COLUMNS[_table], **_columns("known_to:instant is_deleted:flag")}
    KEYS[f"{_table}_history"] = [*KEYS[_table], "known_from"]

# What a current table says of the latest sighting, and a version of its first.
SIGHTINGS = ["employment_id", "occupation_count", "salary_count", "created_at", "collected_at"]

# In DuckDB only, and empty as long as every record can be read.
ALSO_IN_DUCKDB = ["rejected_records"]

PARTITION_KEY = "link_bucket"
