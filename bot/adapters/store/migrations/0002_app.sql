-- The app that proved its key from inside the container, told of in the container's announcement.
ALTER TABLE container ADD COLUMN app TEXT CHECK (app IS NULL OR length(app) = 64);
