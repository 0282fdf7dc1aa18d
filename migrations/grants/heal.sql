-- The producer's side of a comparison is the relay's, the consumer's is the app's.
GRANT SELECT, INSERT, UPDATE ON heal_mark TO :"app", :"relay";
