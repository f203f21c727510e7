-- What was known at an instant: each table as it stood then, children and parents alike.

CREATE MACRO employments_as_of(ts) AS TABLE
SELECT * EXCLUDE (known_to, is_deleted)
FROM employments_history
WHERE known_from <= CAST(ts AS TIMESTAMPTZ)
  AND (known_to IS NULL OR known_to > CAST(ts AS TIMESTAMPTZ))
  AND NOT is_deleted;

COMMENT ON MACRO TABLE employments_as_of IS 'Jobs as they were known at an instant: employments_as_of(ts TIMESTAMPTZ)';

CREATE MACRO salaries_as_of(ts) AS TABLE
SELECT * EXCLUDE (known_to, is_deleted)
FROM salaries_history
WHERE known_from <= CAST(ts AS TIMESTAMPTZ)
  AND (known_to IS NULL OR known_to > CAST(ts AS TIMESTAMPTZ))
  AND NOT is_deleted;

COMMENT ON MACRO TABLE salaries_as_of IS 'Monthly pay as it was known at an instant: salaries_as_of(ts TIMESTAMPTZ)';
