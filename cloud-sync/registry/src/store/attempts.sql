-- When an attempt began, so that one that another replica may still be writing is told from one that nobody is.
ALTER TABLE row_files ADD COLUMN begun_ms BIGINT NOT NULL DEFAULT 0;

-- Looked for with every batch, and few, however many files there are.
DROP INDEX row_files_by_stream;
CREATE INDEX row_files_unfinished ON row_files (device, stream) WHERE state <> 'durable';
CREATE INDEX row_files_abandoned ON row_files (begun_ms) WHERE state <> 'durable';
