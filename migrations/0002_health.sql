-- What is known of each physical GPU, across the instances that it was rented as: by its serial number, or by
-- `provider:instance` where it tells none. `body` is the whole record.
CREATE TABLE gpus (
    serial TEXT PRIMARY KEY,
    node BIGINT NOT NULL,
    seen_at_ms BIGINT NOT NULL,
    body TEXT NOT NULL
);

-- What gates and diagnostics said, with every number.
CREATE TABLE evidence (
    id BIGINT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    node BIGINT NOT NULL,
    checks TEXT NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX evidence_node ON evidence (node, id);
