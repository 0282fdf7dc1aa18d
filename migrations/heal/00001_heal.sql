-- +goose Up

-- Up to which bucket of a book this side and the other one were found alike. It is kept on both sides, each in its own database:
-- one that is restored to an earlier point takes its mark back with its rows, and the comparison begins at the lesser of the two.
CREATE TABLE heal_mark (
    book   text        NOT NULL,
    side   text        NOT NULL,
    bucket bigint      NOT NULL,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (book, side)
);
