-- A span in months: days / 30.4375, one decimal.
CREATE MACRO months_of_days(days) AS rounded_ratio(days, 30.4375, 1);
COMMENT ON MACRO months_of_days IS 'A span of days in months of 30.4375 days, one decimal';
