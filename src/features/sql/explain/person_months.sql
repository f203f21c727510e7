-- What all jobs paid together in each month, and the law of the month.
SELECT month_date(p.month) AS month, p.income, p.inss, p.jobs_paid, p.thirteenth, p.is_partial, w.minimum_wage, i.teto
FROM person_months AS p
LEFT JOIN wage_months AS w ON w.month = p.month
LEFT JOIN inss_months AS i ON i.month = p.month AND i.bracket = 1
ORDER BY p.month
