-- What those who learn from an event need to know of it, as JSON. Empty in what older versions wrote: there the columns and
-- the records say it.
ALTER TABLE events ADD COLUMN body TEXT NOT NULL DEFAULT '';
