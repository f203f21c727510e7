-- One row for each link and date, strict only: what was known on the day, which is what a model may be trained on.
select * exclude (pit_mode)
from {{ source('vinculo', 'credit_features') }}
where pit_mode = 'strict'
