-- The model and the view of vinculo.duckdb give the same amounts.
select coalesce(m.link_id, v.link_id) as link_id, coalesce(m.reference_month, v.reference_month) as reference_month
from {{ ref('monthly_pay') }} as m
full join {{ source('vinculo', 'monthly_income') }} as v
    on m.link_id = v.link_id and m.reference_month = v.reference_month
where m.income_brl is distinct from v.income_brl or m.jobs_paid is distinct from v.jobs_paid
