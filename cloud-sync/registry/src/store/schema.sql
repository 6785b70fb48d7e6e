-- The registry's tables, in the SQL that SQLite and PostgreSQL share.
-- Times are milliseconds since 1970. Structured values are JSON in TEXT.

-- One row for each name that was ever registered: it outlives its versions, so that no number is given twice.
CREATE TABLE models (
    name TEXT NOT NULL PRIMARY KEY,
    last_version BIGINT NOT NULL
);

CREATE TABLE versions (
    name TEXT NOT NULL,
    version BIGINT NOT NULL,
    digest TEXT NOT NULL,
    size BIGINT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (name, version)
);

CREATE TABLE devices (
    id TEXT NOT NULL PRIMARY KEY,
    revision BIGINT NOT NULL,
    desired TEXT NOT NULL,
    online BIGINT NOT NULL,
    presence TEXT,
    reported TEXT,
    seen_ms BIGINT
);

-- Why a version may not be deleted: derived from what a device is told to run and from what it says it keeps.
CREATE TABLE holdings (
    device TEXT NOT NULL,
    name TEXT NOT NULL,
    version BIGINT NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (device, name, version, why)
);
CREATE INDEX holdings_by_version ON holdings (name, version);

CREATE TABLE commands (
    id TEXT NOT NULL PRIMARY KEY,
    device TEXT NOT NULL,
    name TEXT NOT NULL,
    deadline_ms BIGINT NOT NULL,
    status BIGINT,
    result TEXT
);

-- How far the rows of each device's spool are durable.
CREATE TABLE streams (
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    durable_through BIGINT NOT NULL,
    stored BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    PRIMARY KEY (device, stream)
);

-- The objects that hold rows. state: pending while it is written, durable when its rows count, doomed when an
-- attempt was given up and the object is to be deleted.
CREATE TABLE row_files (
    path TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL,
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    attempt TEXT NOT NULL,
    model TEXT NOT NULL,
    version BIGINT NOT NULL,
    day TEXT NOT NULL,
    first_ms BIGINT NOT NULL,
    last_ms BIGINT NOT NULL,
    stored BIGINT NOT NULL
);
CREATE INDEX row_files_by_stream ON row_files (device, stream, state);
CREATE INDEX row_files_by_model ON row_files (model, version, day, device);
