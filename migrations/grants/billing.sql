GRANT SELECT, INSERT, UPDATE ON charge TO :"app";
-- The ledger is only ever added to.
GRANT SELECT, INSERT ON ledger TO :"app";
