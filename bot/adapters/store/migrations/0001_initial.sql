-- The first schema. Amounts are msat, times Unix seconds unless a name says otherwise.
-- CHECK constraints repeat the rules of handlers/domain: a bug there must not become a lie here.

CREATE TABLE container (
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
    standing      TEXT NOT NULL CHECK (standing IN ('due', 'started', 'proven')),
    owed_since    INTEGER NOT NULL,
    env           TEXT NOT NULL,
    volumes       TEXT NOT NULL,
    exposed       TEXT NOT NULL,
    upgrade       TEXT NOT NULL CHECK (upgrade IN ('', 'auto')),
    stop_asked_at INTEGER,
    restarted_at  INTEGER NOT NULL,
    low_noticed   INTEGER NOT NULL CHECK (low_noticed IN (0, 1)),
    wallet        TEXT NOT NULL CHECK (wallet LIKE 'wallet:%'),
    announced_id  TEXT,
    announced_at  INTEGER NOT NULL,
    dirty         INTEGER NOT NULL CHECK (dirty IN (0, 1))
) STRICT;
CREATE INDEX container_by_admin ON container (admin, created_at);
CREATE INDEX container_by_state ON container (state);

CREATE TABLE port (
    host_port      INTEGER PRIMARY KEY CHECK (host_port BETWEEN 1 AND 65535),
    container      TEXT NOT NULL REFERENCES container (pubkey),
    container_port TEXT NOT NULL
) STRICT;
CREATE INDEX port_by_container ON port (container);

CREATE TABLE quote (
    quote_id   TEXT PRIMARY KEY,
    body       TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE TABLE invoice (
    payment_hash TEXT PRIMARY KEY CHECK (length(payment_hash) = 64),
    container    TEXT NOT NULL REFERENCES container (pubkey),
    bolt11       TEXT NOT NULL UNIQUE,
    amount_msat  INTEGER NOT NULL CHECK (amount_msat > 0),
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    wallet       TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('open', 'settled', 'closed')),
    next_look_at INTEGER NOT NULL,
    answered_at  INTEGER NOT NULL,
    zap_request  TEXT
) STRICT;
CREATE INDEX invoice_due ON invoice (next_look_at) WHERE state = 'open';
CREATE INDEX invoice_by_container ON invoice (container) WHERE state = 'open';

CREATE TABLE outgoing (
    payment_id       TEXT PRIMARY KEY,
    payment_hash     TEXT NOT NULL CHECK (length(payment_hash) = 64),
    bolt11           TEXT NOT NULL,
    source           TEXT NOT NULL,
    wallet           TEXT NOT NULL,
    amount_msat      INTEGER NOT NULL CHECK (amount_msat > 0),
    fee_reserve_msat INTEGER NOT NULL CHECK (fee_reserve_msat >= 0),
    created_at       INTEGER NOT NULL,
    valid_until      INTEGER NOT NULL,
    state            TEXT NOT NULL CHECK (state IN ('unknown', 'settled', 'failed')),
    to_wallet        TEXT,
    next_look_at     INTEGER NOT NULL
) STRICT;
-- One invoice is tried at most once, whatever the code above believes.
CREATE UNIQUE INDEX outgoing_once ON outgoing (payment_hash);
CREATE INDEX outgoing_due ON outgoing (next_look_at) WHERE state = 'unknown';

CREATE TABLE account (
    name         TEXT PRIMARY KEY,
    balance_msat INTEGER NOT NULL,
    CHECK (balance_msat >= 0 OR name LIKE 'wallet:%' OR name = 'revenue')
) STRICT;

CREATE TABLE entry (
    entry_id INTEGER PRIMARY KEY,
    key      TEXT NOT NULL UNIQUE,
    at       INTEGER NOT NULL
) STRICT;

CREATE TABLE posting (
    entry_id    INTEGER NOT NULL REFERENCES entry (entry_id),
    account     TEXT NOT NULL REFERENCES account (name),
    amount_msat INTEGER NOT NULL CHECK (amount_msat <> 0),
    PRIMARY KEY (entry_id, account)
) STRICT, WITHOUT ROWID;

-- The ledger is append-only.
CREATE TRIGGER entry_kept BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entry_fixed BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER posting_kept BEFORE DELETE ON posting BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER posting_fixed BEFORE UPDATE ON posting BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;

CREATE TABLE meter (
    container        TEXT PRIMARY KEY REFERENCES container (pubkey),
    boot_id          TEXT NOT NULL,
    start_tick       INTEGER NOT NULL,
    charged_until_ms INTEGER NOT NULL,
    remainder        INTEGER NOT NULL CHECK (remainder >= 0)
) STRICT;

CREATE TABLE outbox (
    item_id    INTEGER PRIMARY KEY,
    event      TEXT NOT NULL,
    relays     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    next_at    INTEGER NOT NULL,
    attempts   INTEGER NOT NULL
) STRICT;
CREATE INDEX outbox_due ON outbox (next_at);
