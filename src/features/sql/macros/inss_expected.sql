-- The employee's contribution on a base of pay: of min(base, teto), by the bracket in force on the month's first day,
-- rounded once to cents, half away from zero. NULL: base NULL or not above 0, or no row of ref_inss for the month. A
-- sum of amounts may have more digits than an amount: it is one again once it is cut to teto.
CREATE MACRO inss_expected(base, month) AS (
    SELECT CAST(round(inss_in_bracket(
               CAST(least(CAST(base AS DECIMAL(38, 4)), i.teto) AS DECIMAL(19, 4)), i.method, i.lower_amount, i.rate,
               i.accumulated_amount
           ), 2) AS DECIMAL(19, 2))
    FROM ref_inss AS i
    WHERE date_trunc('month', CAST(month AS DATE)) BETWEEN i.valid_from AND i.valid_to
      AND base > 0
      AND least(CAST(base AS DECIMAL(38, 4)), i.teto) > i.lower_amount
      AND least(CAST(base AS DECIMAL(38, 4)), i.teto) <= i.upper_amount
);
COMMENT ON MACRO inss_expected IS 'INSS contribution expected on a base of pay in a month, in cents; NULL when base is NULL or not above 0, or ref_inss has no row for the month';
