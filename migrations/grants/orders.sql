-- Orders are deleted softly, and for good when their time has come.
GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO :"app";
