-- Pay of each link in each month, over all its jobs.
select
    link_id,
    reference_month,
    sum(base_amount) as income_brl,
    sum(retained_amount) as inss_brl,
    count(distinct employment_key) as jobs_paid
from {{ ref('stg_vinculo__salaries') }}
group by link_id, reference_month
