-- What the person-months of each link say (F14, F16 to F25, F29, F31). Medians are kept doubled (middle_sum), amounts that are
-- squared or weighted as whole ten-thousandths of a real, so that nothing is rounded before the end.
-- x is the number of a month within the 12-month window, so that gaps keep their place in the trend.
incomes AS (
    SELECT
        p.link_no,
        count(p.income) > 0 AS has_pay,
        count(*) FILTER (WHERE p.jobs_paid >= 2 AND p.month > c.window_end - 12) AS concurrent_months,
        arg_max(p.income, p.month) FILTER (WHERE p.income IS NOT NULL AND NOT p.is_partial) AS last_income,
        list(p.income) FILTER (WHERE p.income IS NOT NULL AND NOT p.is_partial AND p.month > c.window_end - 3) AS full_3m,
        list(p.income) FILTER (WHERE p.income IS NOT NULL AND NOT p.is_partial AND p.month > c.window_end - 6) AS full_6m,
        list(p.income) FILTER (WHERE p.income IS NOT NULL AND NOT p.is_partial AND p.month > c.window_end - 12) AS full_12m,
        list(p.income) FILTER (
            WHERE p.income IS NOT NULL AND NOT p.is_partial AND p.month BETWEEN c.window_end - 17 AND c.window_end - 12
        ) AS full_6m_year_before,
        sum(p.income) FILTER (WHERE p.month > c.window_end - 12) AS income_12m,
        count(p.income) FILTER (WHERE p.month > c.window_end - 12) AS paid_months_12m,
        count(*) FILTER (WHERE p.inss = 0 AND p.month > c.window_end - 12) AS inss_zero_months,
        -- The year of F29: that of the last complete month if it is a December, else the year before.
        list(p.income) FILTER (
            WHERE p.income IS NOT NULL AND NOT p.is_partial
              AND p.month // 12 = (month_number(CAST(as_of AS DATE)) - lag_months - 11) // 12
        ) AS full_last_year,
        count(p.income) FILTER (WHERE p.month // 12 = (month_number(CAST(as_of AS DATE)) - lag_months - 11) // 12)
            AS paid_months_last_year,
        sum(p.thirteenth) FILTER (WHERE p.month // 12 = (month_number(CAST(as_of AS DATE)) - lag_months - 11) // 12)
            AS thirteenth_last_year,
        coalesce(bool_or(p.income < w.minimum_wage AND NOT p.is_partial), false) AS is_below_minimum_wage,
        count(*) FILTER (WHERE p.income IS NOT NULL AND NOT p.is_partial AND p.month > c.window_end - 12) AS n,
        sum(p.month - c.window_end + 11) FILTER (
            WHERE p.income IS NOT NULL AND NOT p.is_partial AND p.month > c.window_end - 12
        ) AS sum_x,
        sum((p.month - c.window_end + 11) * (p.month - c.window_end + 11)) FILTER (
            WHERE p.income IS NOT NULL AND NOT p.is_partial AND p.month > c.window_end - 12
        ) AS sum_xx,
        sum(CAST(p.income * 10000 AS HUGEINT)) FILTER (
            WHERE p.income IS NOT NULL AND NOT p.is_partial AND p.month > c.window_end - 12
        ) AS sum_y,
        sum((p.month - c.window_end + 11) * CAST(p.income * 10000 AS HUGEINT)) FILTER (
            WHERE p.income IS NOT NULL AND NOT p.is_partial AND p.month > c.window_end - 12
        ) AS sum_xy,
        -- Beyond 10^13 reais a month the square leaves the range of whole numbers: F22 then has no value.
        sum(CASE WHEN abs(p.income) < 10000000000000 THEN CAST(p.income * 10000 AS HUGEINT) * CAST(p.income * 10000 AS HUGEINT) END)
            FILTER (WHERE NOT p.is_partial AND p.month > c.window_end - 12) AS sum_yy,
        coalesce(bool_or(abs(p.income) >= 10000000000000), false) AS is_beyond_squares
    FROM person_months AS p
    JOIN careers AS c ON c.link_no = p.link_no
    LEFT JOIN wage_months AS w ON w.month = p.month
    GROUP BY p.link_no
),
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
