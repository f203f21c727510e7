-- One row for each payment that counts as monthly pay in BRL: type REGULAR or none, in a known month, since the real exists.
select
    link_id,
    employment_key,
    reference_month,
    month_text,
    salary_type,
    seq,
    base_amount,
    retained_amount,
    known_from
from {{ source('vinculo', 'salaries') }}
where coalesce(salary_type, 'REGULAR') = 'REGULAR'
  and currency = 'BRL'
  and base_amount is not null
  and reference_month >= date '1994-07-01'
