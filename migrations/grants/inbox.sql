-- What was handled is forgotten by age alone, and a dead letter never.
GRANT SELECT, INSERT, UPDATE, DELETE ON inbox TO :"app";
GRANT SELECT, INSERT, UPDATE ON inbox_position, inbox_retention, dead_letter TO :"app";
