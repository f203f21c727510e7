-- One row for each job. A job without an end is not closed in the register, which is not the same as still worked at.
select
    link_id,
    employment_key,
    employer_key,
    employer_code_type,
    cnae_class,
    cnae_division,
    cnae_section,
    start_date,
    end_date,
    is_open,
    end_date < start_date as is_end_before_start,
    collected_at,
    known_from
from {{ source('vinculo', 'employments') }}
