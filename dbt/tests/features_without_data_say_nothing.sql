-- Not asked is not unemployed: without an answer every feature is NULL.
select link_id, as_of_date
from {{ ref('stg_vinculo__credit_features') }}
where not has_data
  and (is_employed is not null or income_mean_12m_zero_filled_brl is not null or paid_months_12m is not null)
