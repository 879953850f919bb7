-- One text for SQLite and PostgreSQL. Times are BIGINT nanoseconds since 1970,
-- 0 for none; leases are in microseconds of the database's clock. Documents
-- are JSON as TEXT, so that what is hashed is what is stored. BYTEA is no type
-- of SQLite's own: it stores a blob in such a column unchanged.

-- +goose Up

-- One row. Every transaction that writes begins by updating it: that makes
-- writers of several processes take turns, so that a reader who saw seq n has
-- seen everything below n.
CREATE TABLE site (
    id   BIGINT PRIMARY KEY CHECK (id = 1),
    seq  BIGINT NOT NULL, -- of the newest event
    head TEXT   NOT NULL, -- its hash
    next BIGINT NOT NULL  -- last number given to an intent or observation
);
INSERT INTO site (id, seq, head, next) VALUES (1, 0, '', 0);

CREATE TABLE nodes (
    id      TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    state   TEXT   NOT NULL,
    fence   BIGINT NOT NULL,
    doc     TEXT   NOT NULL
);

CREATE TABLE node_macs (
    mac  TEXT NOT NULL,
    node TEXT NOT NULL REFERENCES nodes (id),
    PRIMARY KEY (mac, node)
);
CREATE INDEX node_macs_node ON node_macs (node);

-- Append-only. hash covers doc and the hash of the event before it.
CREATE TABLE events (
    seq     BIGINT PRIMARY KEY,
    node    TEXT   NOT NULL REFERENCES nodes (id),
    version BIGINT NOT NULL,
    doc     TEXT   NOT NULL,
    hash    TEXT   NOT NULL,
    UNIQUE (node, version)
);

CREATE TABLE leases (
    name  TEXT PRIMARY KEY,
    owner TEXT   NOT NULL,
    fence BIGINT NOT NULL,
    until BIGINT NOT NULL
);

CREATE TABLE intents (
    id     TEXT PRIMARY KEY,
    n      BIGINT NOT NULL,
    doc    TEXT   NOT NULL,
    result TEXT   NOT NULL DEFAULT ''
);
CREATE INDEX intents_pending ON intents (n) WHERE result = '';

CREATE TABLE observations (
    id       BIGINT PRIMARY KEY,
    node     TEXT   NOT NULL,
    kind     TEXT   NOT NULL,
    key      TEXT   NOT NULL,
    data     BYTEA  NOT NULL,
    at       BIGINT NOT NULL,
    consumed BIGINT NOT NULL DEFAULT 0,
    UNIQUE (node, kind, key)
);
CREATE INDEX observations_new ON observations (id) WHERE consumed = 0;

CREATE TABLE permits (
    id        TEXT PRIMARY KEY,
    node      TEXT   NOT NULL,
    n         BIGINT NOT NULL,
    not_after BIGINT NOT NULL,
    used      BIGINT NOT NULL DEFAULT 0,
    doc       TEXT   NOT NULL
);
CREATE INDEX permits_node ON permits (node);

CREATE TABLE tasks (
    id     TEXT PRIMARY KEY,
    node   TEXT   NOT NULL,
    opened BIGINT NOT NULL,
    done   BIGINT NOT NULL,
    doc    TEXT   NOT NULL
);
CREATE INDEX tasks_node ON tasks (node);

CREATE TABLE nonces (
    nonce   TEXT PRIMARY KEY,
    node    TEXT   NOT NULL,
    mac     TEXT   NOT NULL,
    mode    TEXT   NOT NULL,
    fence   BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    used    BIGINT NOT NULL DEFAULT 0,
    used_by TEXT   NOT NULL DEFAULT ''
);

CREATE TABLE agents (
    session     TEXT PRIMARY KEY,
    node        TEXT   NOT NULL,
    mode        TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,
    fence       BIGINT NOT NULL,
    expires     BIGINT NOT NULL
);
CREATE INDEX agents_node ON agents (node, mode);

CREATE TABLE tokens (
    hash    TEXT PRIMARY KEY,
    name    TEXT   NOT NULL,
    role    TEXT   NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE blobs (
    node TEXT   NOT NULL,
    name TEXT   NOT NULL,
    type TEXT   NOT NULL,
    data BYTEA  NOT NULL,
    at   BIGINT NOT NULL,
    PRIMARY KEY (node, name)
);
