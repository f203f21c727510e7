-- Reais with four decimals, rounded half away from zero. NULL beyond DECIMAL(19,4), which no pay comes near.
CREATE MACRO brl(amount) AS TRY_CAST(round(amount, 4) AS DECIMAL(19, 4));
COMMENT ON MACRO brl IS 'Reais with four decimals, rounded half away from zero';
