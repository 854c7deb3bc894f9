-- Evidence for outgoing payments: whether a wallet's book showed one unsettled, what it cost, whether its owner was told.
ALTER TABLE outgoing ADD COLUMN fees_msat INTEGER NOT NULL DEFAULT 0 CHECK (fees_msat >= 0);
ALTER TABLE outgoing ADD COLUMN seen_unsettled INTEGER NOT NULL DEFAULT 0 CHECK (seen_unsettled IN (0, 1));
ALTER TABLE outgoing ADD COLUMN told INTEGER NOT NULL DEFAULT 0 CHECK (told IN (0, 1));
CREATE INDEX outgoing_seen ON outgoing (created_at) WHERE seen_unsettled;
CREATE INDEX outgoing_settled ON outgoing (created_at) WHERE state = 'settled';
