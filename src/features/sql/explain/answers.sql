-- The latest answer that was known.
SELECT strftime(make_timestamp(epoch_us(collected_at)), '%Y-%m-%dT%H:%M:%S.%fZ') AS collected_at FROM asked
