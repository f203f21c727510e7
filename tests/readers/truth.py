"""Compares a table, cell by cell, with what the simulator says it should hold.

Takes the lake's rows as dicts of canonical values and the truth's rows as they stand in its JSON. A column that the truth
does not name is not compared; a column that it names and the lake has not is a difference. Differences are printed with
their values: truths exist for simulated people only.
"""

import json


def compare(lake_rows, truth_rows, key):
    """(list of differences in words, columns that were compared, columns that rows were matched by)."""
    known = set().union(*(row.keys() for row in truth_rows)) if truth_rows else set()
    # The simulator cannot know the daemon's clock, nor a key that the daemon derives: then rows are matched by what is left.
    by = [name for name in (_stand_in(name, known) for name in key) if name in known]
    values = sorted(known - set(by))
    if not by or not values:
        return [f"the truth names no key column or no value column (it has {sorted(known)})"], values, by

    truth, differences = {}, []
    for row in truth_rows:
        identity = _identity(row, by)
        if identity in truth:
            differences.append(f"the truth has {identity} twice")
        truth[identity] = row
    lake = {}
    left = [name for name in key if name not in by]
    for row in sorted(lake_rows, key=lambda row: [str(row[name]) for name in left]):
        identity = _identity(row, by)
        # With the daemon's clock left out of the key, the newest row is the one that the truth speaks of.
        if identity in lake and by == key:
            differences.append(f"the lake has {identity} twice")
        lake[identity] = row

    differences += [f"missing in the lake: {identity}" for identity in truth if identity not in lake]
    differences += [f"not in the truth: {identity}" for identity in lake if identity not in truth]
    for identity, row in truth.items():
        for name in values if identity in lake else []:
            if name not in lake[identity]:
                differences.append(f"the lake has no column {name}")
            elif name in row and not _same(name, lake[identity][name], row[name]):
                differences.append(f"{identity} {name}: lake {lake[identity][name]!r}, truth {row[name]!r}")
    return differences, values, by


def _stand_in(name, known):
    return "employment_id" if name == "employment_key" and name not in known else name


def _identity(row, by):
    return tuple(json.dumps(row.get(name)) for name in by)


def _same(name, lake, truth):
    if name == "extra" and lake is not None and truth is not None:
        # The same JSON, whatever its spaces; numbers stay text, so that 1.10 is not 1.1.
        parsed = [json.loads(v, parse_float=str) if isinstance(v, str) else v for v in (lake, truth)]
        return parsed[0] == parsed[1]
    # True == 1 in Python, but not in a table.
    return type(lake) is type(truth) and lake == truth
