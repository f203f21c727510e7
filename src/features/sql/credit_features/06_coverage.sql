-- Legal months of a job: from the later of its start month and W-35 to the earlier of its effective end's month and W.
legal_spans AS MATERIALIZED (
    SELECT
        s.link_no,
        s.job_no,
        c.window_end,
        greatest(s.start_month, c.window_end - 35) AS first_month,
        least(month_number(s.end_or_date), c.window_end) AS last_month
    FROM job_states AS s
    JOIN careers AS c ON c.link_no = s.link_no
    WHERE greatest(s.start_month, c.window_end - 35) <= least(month_number(s.end_or_date), c.window_end)
),

-- Runs of months that no job covers (F11 to F13), looked for from the later of the first start's month and W-35 to W: before
-- each span, the months since the latest month that any earlier span reaches; and the months after the last span.
gaps AS (
    SELECT
        link_no,
        first_month - 1 - coalesce(
            max(last_month) OVER (
                PARTITION BY link_no ORDER BY first_month, last_month, job_no ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            first_month - 1
        ) AS months
    FROM legal_spans
    UNION ALL
    SELECT
        c.link_no,
        c.window_end - coalesce(max(l.last_month), greatest(c.first_start_month, c.window_end - 35) - 1)
    FROM careers AS c
    LEFT JOIN legal_spans AS l ON l.link_no = c.link_no
    GROUP BY c.link_no, c.window_end, c.first_start_month
    UNION ALL
    SELECT c.link_no, min(l.first_month) - greatest(c.first_start_month, c.window_end - 35)
    FROM careers AS c
    JOIN legal_spans AS l ON l.link_no = c.link_no
    GROUP BY c.link_no, c.window_end, c.first_start_month
),
coverage AS (
    SELECT
        c.link_no,
        greatest(0, c.window_end - greatest(any_value(c.first_start_month), c.window_end - 35) + 1)
            - coalesce(sum(g.months) FILTER (WHERE g.months > 0), 0) AS employed_months,
        coalesce(max(g.months) FILTER (WHERE g.months > 0), 0) AS gap_max_months,
        count(*) FILTER (WHERE g.months > 0) AS gap_count
    FROM careers AS c
    JOIN gaps AS g ON g.link_no = c.link_no
    GROUP BY c.link_no, c.window_end
),

-- Legal job-months of W-23 to W, and how many of them are paid (Q5).
paid_share AS (
    SELECT
        l.link_no,
        sum(greatest(0, l.last_month - greatest(l.first_month, l.window_end - 23) + 1)) AS legal_months,
        sum(coalesce(p.paid_months, 0)) AS paid_months
    FROM legal_spans AS l
    LEFT JOIN (
        SELECT m.job_no, count(*) AS paid_months
        FROM job_months AS m
        JOIN legal_spans AS l ON l.job_no = m.job_no
        WHERE m.base IS NOT NULL AND m.month BETWEEN greatest(l.first_month, l.window_end - 23) AND l.last_month
        GROUP BY m.job_no
    ) AS p ON p.job_no = l.job_no
    GROUP BY l.link_no
)
