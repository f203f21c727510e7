-- Twice the median of a sorted list: the sum of its two middle items, which for an odd count are the same one. Half of it
-- is the interpolated median; it stays doubled until the one rounding at the end.
CREATE MACRO middle_sum(sorted) AS
    CAST(sorted[(len(sorted) + 1) // 2] AS DECIMAL(38, 4)) + CAST(sorted[len(sorted) // 2 + 1] AS DECIMAL(38, 4));
COMMENT ON MACRO middle_sum IS 'Twice the median of a sorted list: the sum of its two middle items';
