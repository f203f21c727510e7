-- A webhook is answered once its row is durable, and followed up a moment later, together with others. Until then its outcome
-- is `received`, and its row names no link: at the end of each index it costs one page, anywhere else one of its own.
CREATE INDEX webhooks_received ON webhooks (seq) WHERE outcome = 'received';
