"""Computes `credit_features` once more, person by person in plain Python, and compares every value with the macro's.

    oracle.py LAKE

The SQL of the macro works on all links at once, in windows and joins; this reads like the definitions. Where both agree on
people who were made at random, on dates and lags at random, neither has a slip of its own. Ends with 1 when a value differs.
"""

import bisect
import calendar
import collections
import datetime
import decimal
import pathlib
import random
import sys
from fractions import Fraction

sys.path.insert(0, str(max(pathlib.Path(sys.prefix).glob("duckdb/*"))))
import duckdb  # noqa: E402

ASKED = 10


def main():
    lake = (pathlib.Path(sys.argv[1]) / "current").resolve()
    db = duckdb.connect(str(lake / "vinculo.duckdb"), read_only=True)
    history = History(db)
    chosen = random.Random(7)
    newest = db.execute("SELECT CAST(make_timestamp(epoch_us(max(collected_at))) AS DATE) FROM link_snapshots").fetchone()[0]
    values = wrong = 0
    for number in range(ASKED):
        # The first is today's, strict; then looks back, among them ends and beginnings of months.
        as_of = newest - datetime.timedelta(days=number and chosen.randrange(1, 2400))
        if number % 3 == 1:
            as_of = as_of.replace(day=chosen.choice((1, calendar.monthrange(as_of.year, as_of.month)[1])))
        known = datetime.datetime.combine(newest if number else as_of, datetime.time.max)
        lag = 1 if number == 0 else chosen.randrange(0, 4)
        call = f"credit_features(DATE '{as_of}', TIMESTAMPTZ '{known}+00', {lag})"
        result = db.execute(f"SELECT {in_utc(db, call)} FROM {call} ORDER BY link_id")
        names = [column[0] for column in result.description]
        for row in result.fetchall():
            found = dict(zip(names, row))
            for name, expected in features(history, found["link_id"], as_of, known, lag).items():
                values += 1
                if not is_same(found[name], expected):
                    wrong += 1
                    if wrong <= 20:
                        print(f"  {found['link_id']} as of {as_of}, lag {lag}: {name} is {found[name]}, expected {expected}")
    print(f"oracle.py: {values} values of {len(history.links)} links on {ASKED} dates, {wrong} differ")
    return 1 if wrong or not values else 0


class History:
    """The tables, by link and by job."""

    def __init__(self, db):
        def rows(table, key):
            result = db.execute(f"SELECT {in_utc(db, table)} FROM {table}")
            names = [column[0] for column in result.description]
            grouped = collections.defaultdict(list)
            for row in map(lambda values: dict(zip(names, values)), result.fetchall()):
                grouped[row[key]].append(row)
            return grouped

        self.links = rows("links", "link_id")
        self.answers = rows("(SELECT * FROM link_snapshots WHERE resource = 'employments')", "link_id")
        self.jobs = rows("employments_history", "link_id")
        self.pay = rows("salaries_history", "employment_key")
        self.occupations = rows("occupations_history", "employment_key")
        self.wages = db.execute("SELECT valid_from, valid_to, amount FROM ref_minimum_wage").fetchall()
        self.margins = db.execute("SELECT valid_from, valid_to, loan_rate FROM ref_consignado_margin WHERE regime = 'PRIVATE'").fetchall()
        self.inss = collections.defaultdict(list)
        for first, last, method, upper, rate in db.execute(
            "SELECT valid_from, valid_to, method, upper_amount, rate FROM ref_inss ORDER BY valid_from, bracket"
        ).fetchall():
            self.inss[first, last].append((method, Fraction(upper), Fraction(rate)))

    def wage(self, month):
        return next((Fraction(amount) for first, last, amount in self.wages if first <= first_day(month) <= last), None)

    def brackets(self, month):
        return next((rows for (first, last), rows in self.inss.items() if first <= first_day(month) <= last), None)

    def teto(self, month):
        brackets = self.brackets(month)
        return brackets and brackets[-1][1]

    def contribution(self, base, month):
        """What is to be withheld of the base, not rounded."""
        brackets = self.brackets(month)
        if base is None or base <= 0 or not brackets:
            return None
        base = min(base, brackets[-1][1])
        at = bisect.bisect_left([upper for _, upper, _ in brackets], base)
        if brackets[0][0] == "FLAT":
            return base * brackets[at][2]
        total, below = Fraction(0), Fraction(0)
        for _, upper, rate in brackets[: at + 1]:
            total += (min(base, upper) - below) * rate
            below = upper
        return total


def in_utc(db, relation):
    """The columns, instants as those of UTC without a zone: Python's DuckDB wants another package for zones."""
    columns = db.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    return ", ".join(f"make_timestamp(epoch_us({name})) AS {name}" if "ZONE" in kind else name for name, kind, *_ in columns)


def number_of(day):
    return day.year * 12 + day.month - 1


def first_day(month):
    return datetime.date(month // 12, month % 12 + 1, 1)


def last_day(month):
    return datetime.date(month // 12, month % 12 + 1, calendar.monthrange(month // 12, month % 12 + 1)[1])


def months_before(day, count):
    month = number_of(day) - count
    return last_day(month).replace(day=min(day.day, last_day(month).day))


def rounded(value, digits):
    """Half away from zero."""
    if value is None:
        return None
    units = abs(Fraction(value)) * 10**digits
    whole = (2 * units.numerator + units.denominator) // (2 * units.denominator)
    return Fraction(whole if value >= 0 else -whole, 10**digits)


def median(values):
    values = sorted(values)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2 if values else None


def ratio(above, below, digits):
    return None if above is None or not below else rounded(above / below, digits)


def is_known(row, known):
    return row["known_from"] <= known and (row["known_to"] is None or row["known_to"] > known) and not row["is_deleted"]


def total(values):
    values = [Fraction(value) for value in values if value is not None]
    return sum(values) if values else None


def is_same(found, expected):
    if isinstance(expected, Fraction):
        return found is not None and abs(Fraction(str(found)) - expected) < Fraction(1, 10**9)
    return found == expected


class Job:
    def __init__(self, row, as_of):
        self.row, self.key, self.start = row, row["employment_key"], row["start_date"]
        self.end = row["end_date"] if row["end_date"] and row["end_date"] <= as_of else None
        self.known_pay, self.counted, self.paid, self.months = [], [], [], {}


def features(history, link, as_of, known, lag):
    kept = {"pit_mode": "retro" if known.date() > as_of else "strict", "lag_months": lag}
    answers = answers_known(history, link, known)
    kept["has_data"] = bool(answers)
    if not answers:
        return {**kept, "dq_flags": [], "is_employed": None, "paid_months_12m": None, "data_age_days": None}
    m0 = number_of(as_of) - lag
    jobs = [Job(row, as_of) for row in history.jobs[link] if is_known(row, known) and row["start_date"] and row["start_date"] <= as_of]
    for job in jobs:
        for row in history.pay[job.key]:
            if is_known(row, known) and row["reference_month"]:
                month = number_of(row["reference_month"])
                job.known_pay.append((month, row))
                is_real = row["currency"] == "BRL" and row["base_amount"] is not None
                if is_real and row["reference_month"] >= datetime.date(1994, 7, 1) and month <= m0:
                    job.counted.append((month, row))
                    if row["salary_type"] in ("REGULAR", None):
                        job.paid.append((month, row))
        job.last = max((month for month, _ in job.paid), default=None)
        is_recent = (job.last is not None and m0 - job.last <= 2) or m0 - number_of(job.start) <= 2
        job.is_alive, job.is_zombie = job.end is None and is_recent, job.end is None and not is_recent
        job.effective = last_day(job.last if job.last is not None else number_of(job.start)) if job.is_zombie else job.end
        job.until = job.effective or as_of
        for month in {month for month, _ in job.paid}:
            rows = [row for at, row in job.paid if at == month]
            is_partial = (job.start.day > 1 and month == number_of(job.start)) or (
                job.effective is not None and job.effective < last_day(number_of(job.effective)) and month == number_of(job.effective)
            )
            base, kept_back = total(row["base_amount"] for row in rows), total(row["retained_amount"] for row in rows)
            job.months[month] = (base, kept_back, is_partial)
    alive = [job for job in jobs if job.is_alive]

    lasts = [job.last for job in jobs if job.last is not None]
    window = None
    if jobs:
        window = max(lasts) if alive and lasts and m0 - max(lasts) in (1, 2) else m0
    people = {}
    for month in {month for job in jobs for month in job.months}:
        parts = [job.months[month] for job in jobs if month in job.months]
        income, inss = total(base for base, _, _ in parts), total(kept_back for _, kept_back, _ in parts)
        people[month] = (income, inss, len(parts), any(is_partial for _, _, is_partial in parts))

    def within(count, end=0):
        return {month: person for month, person in people.items() if jobs and window - count < month <= window - end}

    def level(count, end=0):
        return median(income for income, _, _, is_partial in within(count, end).values() if not is_partial)

    year = within(12)
    full = {month: income for month, (income, _, _, is_partial) in people.items() if not is_partial}
    of_year = [(month, income) for month, income in sorted(full.items()) if month in year]
    row = {**kept, "window_end_month": first_day(window) if jobs else None}
    days = lambda span: rounded(Fraction(span * 10000, 304375), 1)  # noqa: E731
    distinct = lambda count: len({  # noqa: E731
        job.row["employer_key"] for job in jobs if job.until > months_before(as_of, count) and job.row["employer_key"] is not None
    })

    # Employment
    main = min(alive, key=lambda job: (-(middle(job, window) or 0), job.start, job.key), default=None)
    row["is_employed"] = bool(alive)
    row["open_jobs"] = len(alive)
    row["tenure_current_months"] = days((as_of - main.start).days) if main else None
    row["tenure_max_months"] = days(max((max(0, (job.until - job.start).days) for job in jobs), default=0))
    row["months_since_last_job"] = Fraction(0) if alive else days(min(((as_of - job.until).days for job in jobs), default=0))
    row["months_since_first_job"] = days(max(((as_of - job.start).days for job in jobs), default=0))
    row |= {f"employers_{count}m": distinct(count) for count in (12, 24, 36)}
    row["jobs_started_12m"] = sum(job.start > months_before(as_of, 12) for job in jobs)
    legal = {job.key: legal_months(job, window) for job in jobs}
    covered = {month for months in legal.values() for month in months}
    runs, run = [], 0
    begin = max(min(number_of(job.start) for job in jobs), window - 35) if jobs else 0
    for month in range(begin, window + 1) if jobs else ():
        run = 0 if month in covered else run + 1
        if run == 1:
            runs.append(0)
        if run:
            runs[-1] = run
    row["employed_months_36m"], row["gap_max_months_36m"], row["gap_count_36m"] = len(covered), max(runs, default=0), len(runs)
    row["concurrent_months_12m"] = sum(jobs_paid >= 2 for _, _, jobs_paid, _ in year.values())
    row["open_jobs_without_pay"] = sum(job.is_zombie for job in jobs)

    # Income
    row["income_last_brl"] = full[max(full)] if full else None
    row["income_median_3m_brl"], row["income_median_6m_brl"] = rounded(level(3), 4), rounded(level(6), 4)
    row["income_median_12m_brl"] = rounded(level(12), 4)
    row["income_mean_12m_zero_filled_brl"] = rounded(Fraction(total(person[0] for person in year.values()) or 0) / 12, 4)
    row["paid_months_12m"] = len(year)
    row["income_cv_12m"], row["income_slope_12m"] = spread(of_year)
    before = level(18, 12)
    row["income_growth_yoy"] = ratio(level(6) - before if level(6) is not None and before is not None else None, before, 4)
    row["income_ratio_3m_12m"] = ratio(level(3), level(12), 4)
    row["income_in_minimum_wages"] = ratio(level(3), history.wage(window) if jobs else None, 2)
    row["income_to_teto"] = ratio(level(3), history.teto(window) if jobs else None, 3)

    # Contributions and the 13th salary
    with_table = [month for month in year if history.teto(month)]
    capped = sum(
        any(month in job.months and abs(job.months[month][0] - history.teto(month)) <= Fraction(1, 100) for job in jobs) for month in with_table
    )
    row["capped_months_12m"] = None if not people or (year and not with_table) else capped
    y = m0 // 12 if m0 % 12 == 11 else m0 // 12 - 1
    paid_of_y = [month for month in people if month // 12 == y]
    thirteenth = total(
        pay["base_amount"] for job in jobs for month, pay in job.counted if pay["salary_type"] == "THIRTEENTH" and month // 12 == y
    )
    of_y = median(income for month, income in full.items() if month // 12 == y)
    row["thirteenth_ratio_last_year"] = ratio(Fraction(thirteenth or 0), of_y and of_y * len(paid_of_y) / 12, 3)
    compared = [(person[1], history.contribution(person[0], month)) for month, person in year.items() if person[1] and person[1] > 0]
    compared = [abs(inss - expected) <= max(Fraction(5, 100), expected / 200) for inss, expected in compared if expected is not None]
    row["inss_plausible_share_12m"] = ratio(Fraction(sum(compared)), len(compared), 3)
    row["inss_zero_months_12m"] = sum(inss == 0 for _, inss, _, _ in year.values() if inss is not None)

    # The main job
    row["main_job_income_share"] = ratio(middle(main, window), level(3), 3) if main else None
    row["employer_sector"] = sector(main.row) if main else None
    row["cnae_section"], row["cnae_division"] = (main.row["cnae_section"], main.row["cnae_division"]) if main else (None, None)
    row["cbo_major_group"], row["cbo_family"] = occupation(history, main, as_of, known) if main else (None, None)
    rate = next((Fraction(rate) for first, last, rate in history.margins if first <= as_of <= last), None)
    rests = [rest(job, window) for job in alive if sector(job.row) == "PRIVATE"]
    rests = [amount for amount in rests if amount is not None]
    row["consignado_margin_upper_brl"] = rounded(rate * sum(rests), 4) if rests and rate is not None else None

    # Quality
    row["data_age_days"] = (as_of - max(answers).date()).days if kept["pit_mode"] == "strict" else None
    row["salary_lag_months"] = m0 - max(people) if people else None
    row["history_months"] = max(people) - min(people) + 1 if people else None
    asked_for = [(job, month) for job in jobs for month in legal[job.key] if month > window - 24]
    row["salary_coverage_24m"] = ratio(Fraction(sum(month in job.months for job, month in asked_for)), len(asked_for), 3)
    row["dq_flags"] = flags(history, jobs, full, m0, known)
    if not jobs:
        stay = {*kept, "is_employed", "income_mean_12m_zero_filled_brl", "paid_months_12m", "data_age_days", "dq_flags"}
        row = {name: value if name in stay else None for name, value in row.items()}
    elif not people:
        row |= dict.fromkeys(["concurrent_months_12m", "inss_zero_months_12m"])
    return row


def middle(job, window):
    """Median pay in the three months up to the window's end, partial months too."""
    return median(base for month, (base, _, _) in job.months.items() if window - 3 < month <= window)


def rest(job, window):
    """Pay less INSS of the latest of those months in which INSS is known."""
    months = [month for month, (_, inss, _) in job.months.items() if window - 3 < month <= window and inss is not None]
    return job.months[max(months)][0] - job.months[max(months)][1] if months else None


def legal_months(job, window):
    return range(max(number_of(job.start), window - 35), min(number_of(job.until), window) + 1)


def answers_known(history, link, known):
    """When each answer was collected that counts: of those that are older than the first, only where they told of a job."""
    rows = sorted(history.answers[link], key=lambda row: row["fetched_at"])
    first = next((row["collected_at"] for row in rows if row["collected_at"]), None)
    answers = [row["collected_at"] or row["fetched_at"] for row in rows]
    answers = [at for at in answers if at <= known]
    told = [row for row in history.jobs[link] if row["known_from"] <= known and row["known_to"] and first and row["known_to"] <= first]
    is_asked = any(first and first <= known or not row["collected_at"] and row["fetched_at"] <= known for row in rows)
    return answers if is_asked or told else []


def spread(months):
    """Spread and trend of the full months of a year."""
    count, values = len(months), [income for _, income in months]
    mean = Fraction(sum(values)) / count if count else 0
    if count < 6 or mean == 0:
        return None, None
    square = sum((value - mean) ** 2 for value in values) / (count - 1) / mean**2
    with decimal.localcontext(decimal.Context(prec=50)):
        deviation = (decimal.Decimal(square.numerator) / square.denominator).sqrt()
    middle_month = Fraction(sum(month for month, _ in months), count)
    above = sum((month - middle_month) * (value - mean) for month, value in months)
    slope = above / sum((month - middle_month) ** 2 for month, _ in months)
    return rounded(Fraction(deviation) * (1 if mean > 0 else -1), 4), rounded(12 * slope / mean, 4)


def sector(job):
    if job["cnae_division"] == "84":
        return "PUBLIC"
    if job["employer_code_type"] == "CPF":
        return "INDIVIDUAL"
    return "UNKNOWN" if job["cnae_division"] is None else "PRIVATE"


def occupation(history, job, as_of, known):
    rows = [row for row in history.occupations[job.key] if is_known(row, known) and (row["start_date"] or job.start) <= as_of]

    def order(row):
        end = row["end_date"]
        has_ended = end is not None and end <= as_of
        return ((row["start_date"] or job.start), not has_ended, end or datetime.date.max, -row["seq"])

    best = max(rows, key=order, default=None)
    return (best["cbo_major_group"], best["cbo_family"]) if best else (None, None)


def flags(history, jobs, full, m0, known):
    found = set()
    for job in jobs:
        months = [month for month, _ in job.paid]
        if len(set(months)) < len(months):
            found.add("DUP_MONTH")
        if job.row["end_date"] and job.row["end_date"] < job.start:
            found.add("END_BEFORE_START")
        if any(month < number_of(job.start) or (job.end and month > number_of(job.end)) for month in months):
            found.add("PAY_OUTSIDE_JOB")
        if any(month > number_of(known) for month, _ in job.known_pay):
            found.add("FUTURE_MONTH")
        past = [row for month, row in job.known_pay if month <= m0]
        if any(row["currency"] not in ("BRL", None) for row in past):
            found.add("NON_BRL")
        if any(row["salary_type"] not in ("REGULAR", "THIRTEENTH", "VOLUNTARY", "RETIREMENT", None) for row in past):
            found.add("TYPE_UNKNOWN")
        if any(row["retained_amount"] is not None and row["retained_amount"] > row["base_amount"] for _, row in job.counted):
            found.add("RETAINED_GT_BASE")
    if any(history.wage(month) is not None and income < history.wage(month) for month, income in full.items()):
        found.add("BELOW_MIN_WAGE_FULL_MONTH")
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main())
