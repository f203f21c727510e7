-- What each job paid in each month.
SELECT j.employment_key, month_date(m.month) AS month, m.base, m.retained, m.thirteenth
FROM job_months AS m
JOIN jobs AS j ON j.job_no = m.job_no
ORDER BY m.month, j.employment_key
