-- Months as whole numbers, so that a difference of months is a subtraction: year * 12 + month - 1.
CREATE MACRO month_number(day) AS year(CAST(day AS DATE)) * 12 + month(CAST(day AS DATE)) - 1;
COMMENT ON MACRO month_number IS 'Number of the month of a date, so that months can be subtracted: year * 12 + month - 1';
