-- Keys are given up when they have expired: UPDATE is what locking them for that takes.
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_keys TO :"app";
