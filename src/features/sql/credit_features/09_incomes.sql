-- What the whole history of each link says (F16, and a flag). Full: income, and no paid job began or ended in the month.
histories AS (
    SELECT
        p.link_no,
        count(p.income) > 0 AS has_pay,
        arg_max(p.income, p.month) FILTER (WHERE p.income IS NOT NULL AND NOT p.is_partial) AS last_income,
        coalesce(bool_or(p.income < w.minimum_wage AND NOT p.is_partial), false) AS is_below_minimum_wage
    FROM person_months AS p
    LEFT JOIN wage_months AS w ON w.month = p.month
    GROUP BY p.link_no
),

-- The person-months that any window reaches: W-17, and the January of F29, are at most 22 months before the last month that
-- may be complete. x is the number of a month within the 12-month window, so that gaps keep their place in the trend.
recent_months AS MATERIALIZED (
    SELECT
        p.*,
        c.window_end,
        p.month - c.window_end + 11 AS x,
        p.month > c.window_end - 12 AS is_in_12m,
        p.income IS NOT NULL AND NOT p.is_partial AS is_full,
        -- The year of F29: that of the last complete month if it is a December, else the year before.
        p.month // 12 = (month_number(CAST(as_of AS DATE)) - lag_months - 11) // 12 AS is_in_last_year
    FROM person_months AS p
    JOIN careers AS c ON c.link_no = p.link_no
    WHERE p.month >= month_number(CAST(as_of AS DATE)) - lag_months - 22
),

-- What the windows say (F14, F17 to F25, F29, F31). Amounts that are squared or weighted are whole ten-thousandths of a real,
-- so that nothing is rounded before the end.
incomes AS (
    SELECT
        link_no,
        count(*) FILTER (WHERE jobs_paid >= 2 AND is_in_12m) AS concurrent_months,
        list(income) FILTER (WHERE is_full AND month > window_end - 3) AS full_3m,
        list(income) FILTER (WHERE is_full AND month > window_end - 6) AS full_6m,
        list(income) FILTER (WHERE is_full AND is_in_12m) AS full_12m,
        list(income) FILTER (WHERE is_full AND month BETWEEN window_end - 17 AND window_end - 12) AS full_6m_year_before,
        sum(income) FILTER (WHERE is_in_12m) AS income_12m,
        count(income) FILTER (WHERE is_in_12m) AS paid_months_12m,
        count(*) FILTER (WHERE inss = 0 AND is_in_12m) AS inss_zero_months,
        list(income) FILTER (WHERE is_full AND is_in_last_year) AS full_last_year,
        count(income) FILTER (WHERE is_in_last_year) AS paid_months_last_year,
        sum(thirteenth) FILTER (WHERE is_in_last_year) AS thirteenth_last_year,
        count(*) FILTER (WHERE is_full AND is_in_12m) AS n,
        sum(x) FILTER (WHERE is_full AND is_in_12m) AS sum_x,
        sum(x * x) FILTER (WHERE is_full AND is_in_12m) AS sum_xx,
        sum(CAST(income * 10000 AS HUGEINT)) FILTER (WHERE is_full AND is_in_12m) AS sum_y,
        sum(x * CAST(income * 10000 AS HUGEINT)) FILTER (WHERE is_full AND is_in_12m) AS sum_xy,
        -- Beyond 10^13 reais a month the square leaves the range of whole numbers: F22 then has no value.
        sum(CASE WHEN abs(income) < 10000000000000 THEN CAST(income * 10000 AS HUGEINT) * CAST(income * 10000 AS HUGEINT) END)
            FILTER (WHERE is_full AND is_in_12m) AS sum_yy,
        coalesce(bool_or(abs(income) >= 10000000000000) FILTER (WHERE is_full AND is_in_12m), false)
            AS is_beyond_squares
    FROM recent_months
    GROUP BY link_no
),

-- Medians are kept doubled until they are rounded.
levels AS (
    SELECT
        *,
        middle_sum(list_sort(full_3m)) AS middle_3m,
        middle_sum(list_sort(full_6m)) AS middle_6m,
        middle_sum(list_sort(full_12m)) AS middle_12m,
        middle_sum(list_sort(full_6m_year_before)) AS middle_6m_year_before,
        middle_sum(list_sort(full_last_year)) AS middle_last_year
    FROM incomes
)
