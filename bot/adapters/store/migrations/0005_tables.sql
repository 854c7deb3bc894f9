-- What is announced is kept apart from what is; the outbox holds intents too; what is over goes to
-- an archive. The tables are made anew where a constraint changes.

CREATE TABLE new_container (
    pubkey        TEXT PRIMARY KEY CHECK (length(pubkey) = 64),
    secret        BLOB NOT NULL CHECK (length(secret) = 32),
    admin         TEXT NOT NULL CHECK (length(admin) = 64),
    name          TEXT NOT NULL,
    asked_for     TEXT NOT NULL,
    image         TEXT NOT NULL CHECK (image LIKE '%@sha256:%'),
    units         INTEGER NOT NULL CHECK (units BETWEEN 1 AND 50),
    price_msat    INTEGER NOT NULL CHECK (price_msat > 0),
    interval_s    INTEGER NOT NULL CHECK (interval_s > 0),
    state         TEXT NOT NULL CHECK (state IN
                  ('waiting', 'deployed', 'paused', 'shelved', 'expired', 'failed', 'stopped')),
    state_since   INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    reason        TEXT,
    generation    INTEGER NOT NULL CHECK (generation >= 1),
    progress      TEXT NOT NULL CHECK (progress IN ('due', 'started', 'proven')),
    proven        INTEGER NOT NULL CHECK (proven IN (0, 1)),
    crashes       INTEGER NOT NULL CHECK (crashes >= 0),
    retry_at      INTEGER NOT NULL,
    owed_since    INTEGER NOT NULL,
    env           TEXT NOT NULL,
    volumes       TEXT NOT NULL,
    exposed       TEXT NOT NULL,
    upgrade       TEXT NOT NULL CHECK (upgrade IN ('', 'auto')),
    stop_asked_at INTEGER,
    restarted_at  INTEGER NOT NULL,
    low_noticed   INTEGER NOT NULL CHECK (low_noticed IN (0, 1)),
    wallet        TEXT NOT NULL CHECK (wallet LIKE 'wallet:%'),
    app           TEXT CHECK (app IS NULL OR length(app) = 64),
    taken_out     INTEGER NOT NULL CHECK (taken_out IN (0, 1)),
    revision      INTEGER NOT NULL CHECK (revision >= 1)
) STRICT;
INSERT INTO new_container
SELECT pubkey, secret, admin, name, asked_for, image, units, price_msat, interval_s, state, state_since, created_at, reason,
       generation, progress, proven, crashes, retry_at, owed_since,
       CASE WHEN state = 'stopped' THEN '{}' ELSE env END,
       volumes, exposed, upgrade, stop_asked_at, restarted_at, low_noticed, wallet, app, 0, 1
FROM container;

CREATE TABLE announcement (
    container    TEXT PRIMARY KEY,
    event_id     TEXT,
    revision     INTEGER NOT NULL,
    announced_at INTEGER NOT NULL,
    profile_at   INTEGER NOT NULL
) STRICT;
INSERT INTO announcement
SELECT pubkey, announced_id, CASE WHEN dirty THEN 0 ELSE 1 END, announced_at, announced_at
FROM container WHERE announced_id IS NOT NULL OR NOT dirty;

DROP TABLE container;
ALTER TABLE new_container RENAME TO container;
CREATE INDEX container_by_admin ON container (admin, created_at);
CREATE INDEX container_by_state ON container (state);

-- What is over. The key stays: money may still come to a wallet of its own.
CREATE TABLE archive (
    pubkey   TEXT PRIMARY KEY,
    secret   BLOB NOT NULL,
    admin    TEXT NOT NULL,
    wallet   TEXT NOT NULL,
    image    TEXT NOT NULL,
    units    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL
) STRICT;

-- An invoice outlives its container: a payment of it is known by it, whenever it is seen.
CREATE TABLE new_invoice (
    payment_hash TEXT PRIMARY KEY CHECK (length(payment_hash) = 64),
    container    TEXT NOT NULL,
    bolt11       TEXT NOT NULL UNIQUE,
    amount_msat  INTEGER NOT NULL CHECK (amount_msat > 0),
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    wallet       TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('open', 'settled', 'closed')),
    next_look_at INTEGER NOT NULL,
    answered_at  INTEGER NOT NULL,
    zap_request  TEXT,
    anonymous    INTEGER NOT NULL CHECK (anonymous IN (0, 1))
) STRICT;
INSERT INTO new_invoice SELECT *, zap_request IS NOT NULL FROM invoice;
DROP TABLE invoice;
ALTER TABLE new_invoice RENAME TO invoice;
CREATE INDEX invoice_due ON invoice (next_look_at) WHERE state = 'open';
CREATE INDEX invoice_by_container ON invoice (container, created_at) WHERE state = 'open';
CREATE INDEX invoice_closed ON invoice (created_at) WHERE state = 'closed';

CREATE TABLE new_outbox (
    item_id    INTEGER PRIMARY KEY,
    intent     TEXT NOT NULL CHECK (intent IN ('event', 'message', 'receipt')),
    body       TEXT NOT NULL,
    relays     TEXT NOT NULL,
    subject    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    next_at    INTEGER NOT NULL,
    attempts   INTEGER NOT NULL
) STRICT;
INSERT INTO new_outbox SELECT item_id, 'event', event, relays, '', created_at, next_at, attempts FROM outbox;
DROP TABLE outbox;
ALTER TABLE new_outbox RENAME TO outbox;
CREATE INDEX outbox_due ON outbox (next_at);
CREATE INDEX outbox_subject ON outbox (subject) WHERE subject <> '';

CREATE INDEX outgoing_sweeps ON outgoing (wallet, created_at) WHERE to_wallet IS NOT NULL;
