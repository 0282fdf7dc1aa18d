-- +goose Up

-- What was handled of a range of the producer's rows. Rows come nearly in the order of seq, so that a few bytes for each 16 pages
-- find them, where a B-tree would cost each insert an entry; of what comes late, the multi form keeps apart.
CREATE INDEX inbox_seq ON inbox USING brin (seq int8_minmax_multi_ops) WITH (pages_per_range = 16, autosummarize = on);
