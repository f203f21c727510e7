-- The contribution that one bracket of ref_inss gives, not rounded. FLAT: the bracket's rate on the whole capped base.
-- PROGRESSIVE: the full slices below, and the bracket's rate on what is above them.
CREATE MACRO inss_in_bracket(capped, method, lower_amount, rate, accumulated_amount) AS
    CASE method WHEN 'FLAT' THEN capped * rate ELSE accumulated_amount + (capped - lower_amount) * rate END;
COMMENT ON MACRO inss_in_bracket IS 'Contribution of a base within its bracket of ref_inss, not rounded';
