-- One text for SQLite and PostgreSQL: TEXT, BIGINT (milliseconds since 1970, flags as 0 and 1), JSON as TEXT.

-- The one row that every writer locks first: writers come one after the other, so that numbers rise in the order of
-- commits, and whoever saw `seq` has seen everything before it.
CREATE TABLE log_head (
    id BIGINT PRIMARY KEY,
    seq BIGINT NOT NULL,
    next_id BIGINT NOT NULL
);
INSERT INTO log_head (id, seq, next_id) VALUES (1, 0, 1);

-- Append-only: every state change with its reason.
CREATE TABLE events (
    seq BIGINT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    subject TEXT NOT NULL,
    subject_id BIGINT NOT NULL,
    from_state TEXT NOT NULL,
    to_state TEXT NOT NULL,
    reason TEXT NOT NULL
);

-- What each write changed, for replicas that catch up: JSON lists of identities. `prev` is the write before; a replica
-- that does not find the write after its last one reads everything. Old ones are deleted.
CREATE TABLE changes (
    seq BIGINT PRIMARY KEY,
    prev BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    nodes TEXT NOT NULL,
    claims TEXT NOT NULL,
    intents TEXT NOT NULL
);

-- `body` is the whole record. `seq`, the write that changed it last, has no index: that would cost each write twice.
CREATE TABLE nodes (
    id BIGINT PRIMARY KEY,
    seq BIGINT NOT NULL,
    state TEXT NOT NULL,
    body TEXT NOT NULL
);

CREATE TABLE claims (
    id BIGINT PRIMARY KEY,
    seq BIGINT NOT NULL,
    state TEXT NOT NULL,
    class TEXT NOT NULL,
    idempotency_key TEXT,
    body TEXT NOT NULL
);
CREATE UNIQUE INDEX claims_key ON claims (idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE intents (
    id BIGINT PRIMARY KEY,
    seq BIGINT NOT NULL,
    state TEXT NOT NULL,
    body TEXT NOT NULL
);

-- Claims of each class that hit or missed, since the beginning.
CREATE TABLE tallies (
    class TEXT PRIMARY KEY,
    seq BIGINT NOT NULL,
    hits BIGINT NOT NULL,
    misses BIGINT NOT NULL
);

-- What people and loops write down whole, by kind and name, with a version for edits that cross.
CREATE TABLE documents (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    seq BIGINT NOT NULL,
    version BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (kind, name)
);

-- Immutable plans.
CREATE TABLE plans (
    epoch BIGINT PRIMARY KEY,
    made_at_ms BIGINT NOT NULL,
    body TEXT NOT NULL
);

-- Demand: most claims at the same time in each step, by class.
CREATE TABLE demand (
    class TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    claims DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (class, at_ms)
);

-- Who leads; `epoch` rises with each change and fences out the one before.
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    until_ms BIGINT NOT NULL
);
INSERT INTO leases (name, holder, epoch, until_ms) VALUES ('leader', '', 0, 0);

-- Tokens by the SHA-256 of their secret.
CREATE TABLE tokens (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    made_at_ms BIGINT NOT NULL,
    revoked_at_ms BIGINT
);

-- What people did.
CREATE TABLE audit (
    id BIGINT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    token TEXT NOT NULL,
    action TEXT NOT NULL,
    detail TEXT NOT NULL
);
