-- numerator / divisor in units of the last kept decimal, rounded half away from zero, in whole numbers throughout: no
-- binary fraction comes between. Both may have four decimals. NULL when the divisor is 0.
CREATE MACRO rounded_units(numerator, divisor, decimals) AS
    CASE WHEN divisor <> 0 THEN
        sign(numerator) * sign(divisor)
        * ((2 * abs(CAST(numerator * 10000 AS HUGEINT)) * CAST(10 ** decimals AS HUGEINT) + abs(CAST(divisor * 10000 AS HUGEINT)))
           // (2 * abs(CAST(divisor * 10000 AS HUGEINT))))
    END;
COMMENT ON MACRO rounded_units IS 'numerator / divisor in units of the last kept decimal, exact, rounded once, half away from zero';
