-- The first day of the month with that number; undoes month_number.
CREATE MACRO month_date(number) AS make_date(number // 12, number % 12 + 1, 1);
COMMENT ON MACRO month_date IS 'First day of the month with that number; undoes month_number';
