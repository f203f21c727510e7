-- numerator / divisor, exact, then rounded once, half away from zero.
CREATE MACRO rounded_ratio(numerator, divisor, decimals) AS
    CAST(rounded_units(numerator, divisor, decimals) AS DOUBLE) / 10 ** decimals;
COMMENT ON MACRO rounded_ratio IS 'numerator / divisor, exact, rounded once, half away from zero; NULL when the divisor is 0';
