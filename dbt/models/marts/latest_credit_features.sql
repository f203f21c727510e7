-- The newest strict row of each link, unless it is too old to decide by.
select *
from {{ ref('stg_vinculo__credit_features') }}
qualify row_number() over (partition by link_id order by as_of_date desc) = 1
    and as_of_date >= (select max(as_of_date) from {{ ref('stg_vinculo__credit_features') }})
        - {{ var('vinculo_features_days') }}
