-- One row for each position within a job, with its CBO code where the title ends in one.
select
    link_id,
    employment_key,
    seq,
    start_date,
    end_date,
    name,
    cbo_code,
    cbo_family,
    cbo_major_group,
    known_from
from {{ source('vinculo', 'occupations') }}
