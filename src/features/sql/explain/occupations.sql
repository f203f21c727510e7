-- The occupation that was chosen.
SELECT cbo_major_group, cbo_family FROM main_occupations
