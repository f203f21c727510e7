-- How many people have a job now, and of how many do we know nothing at all? Not asked is not unemployed.
SELECT
    CASE WHEN NOT has_data THEN 'not asked' WHEN is_employed THEN 'employed' WHEN open_jobs IS NULL THEN 'no job on file' ELSE 'out of work' END
        AS standing,
    count(*) AS people,
    round(median(months_since_last_job), 1) AS months_since_last_job
FROM credit_features
GROUP BY standing
ORDER BY people DESC;

-- standing        people  months_since_last_job
-- ──────────────  ──────  ─────────────────────
-- employed           362                    0.0
-- out of work         88                    6.7
-- no job on file      50                   NULL
