-- What a container has shown: whether it ever stayed up, how often in a row it ended by itself, when it is tried again.
ALTER TABLE container RENAME COLUMN standing TO progress;
ALTER TABLE container ADD COLUMN proven INTEGER NOT NULL DEFAULT 0 CHECK (proven IN (0, 1));
ALTER TABLE container ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0 CHECK (crashes >= 0);
ALTER TABLE container ADD COLUMN retry_at INTEGER NOT NULL DEFAULT 0;
UPDATE container SET proven = 1 WHERE pubkey IN (SELECT container FROM meter);
