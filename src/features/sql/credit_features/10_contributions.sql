-- F28, months of the 12-month window in which one job's base is within a cent of the month's teto: two ordinary jobs that add
-- up to it are not capped. has_table tells whether any paid month of the window has a table.
capped AS (
    SELECT
        m.link_no,
        count(DISTINCT m.month) FILTER (WHERE abs(m.base - i.teto) <= 0.01) AS capped_months,
        bool_or(i.teto IS NOT NULL) AS has_table
    FROM job_months AS m
    JOIN careers AS c ON c.link_no = m.link_no
    LEFT JOIN inss_months AS i ON i.month = m.month AND i.bracket = 1
    WHERE m.base IS NOT NULL AND m.month BETWEEN c.window_end - 11 AND c.window_end
    GROUP BY m.link_no
),

-- F30, of the window's months with INSS withheld and a contribution to be expected on the whole income, not rounded: those in
-- which both differ by at most max(0.05, 0.5 %).
plausible AS (
    SELECT
        link_no,
        count(*) AS comparable_months,
        count(*) FILTER (WHERE abs(inss - expected) <= greatest(0.05, 0.005 * expected)) AS plausible_months
    FROM (
        SELECT
            p.link_no,
            p.inss,
            inss_in_bracket(least(p.income, i.teto), i.method, i.lower_amount, i.rate, i.accumulated_amount) AS expected
        FROM recent_months AS p
        JOIN inss_months AS i
            ON i.month = p.month AND least(p.income, i.teto) > i.lower_amount AND least(p.income, i.teto) <= i.upper_amount
        WHERE p.inss > 0 AND p.is_in_12m
    )
    GROUP BY link_no
)
