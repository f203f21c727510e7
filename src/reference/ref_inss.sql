-- Brackets of each table, from ceilings and rates as the acts give them: bracket counts them from 1, lower_amount is the
-- ceiling below, teto the last one, and accumulated_amount the contribution of the full slices below; a FLAT table has none.
INSERT INTO ref_inss
SELECT
    valid_from,
    valid_to,
    method,
    CAST(row_number() OVER by_ceiling AS INTEGER) AS bracket,
    lower_amount,
    upper_amount,
    rate,
    max(upper_amount) OVER (PARTITION BY valid_from) AS teto,
    CASE method
        WHEN 'FLAT' THEN 0
        ELSE coalesce(
            sum((upper_amount - lower_amount) * rate) OVER (
                PARTITION BY valid_from ORDER BY upper_amount ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            0
        )
    END AS accumulated_amount,
    act
FROM (
    SELECT *, coalesce(lag(upper_amount) OVER (PARTITION BY valid_from ORDER BY upper_amount), 0) AS lower_amount
    FROM inss_given
)
WINDOW by_ceiling AS (PARTITION BY valid_from ORDER BY upper_amount)
ORDER BY valid_from, bracket;
