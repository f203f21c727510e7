-- One row for each link, with what has to be known before any other table is read: was it asked, and how old is the answer.
select
    link_id,
    external_id,
    person_key,
    institution,
    access_mode,
    status,
    created_at,
    employments_collected_at,
    owners_collected_at,
    last_fetched_at,
    is_stale,
    employments_collected_at is not null as has_employments
from {{ source('vinculo', 'links') }}
