-- An annotation database of version 1: the tables and rows atlas_ray wrote before cases had readings and steps had names.
BEGIN TRANSACTION;
CREATE TABLE component_verdict (
	sequence INTEGER NOT NULL,
	round INTEGER NOT NULL,
	case_id VARCHAR(255) NOT NULL,
	organ VARCHAR(64) NOT NULL,
	component INTEGER NOT NULL,
	verdict VARCHAR(16) NOT NULL,
	user VARCHAR(255) NOT NULL,
	created DATETIME NOT NULL,
	note TEXT NOT NULL,
	PRIMARY KEY (sequence)
);
INSERT INTO "component_verdict" VALUES(1,1,'a','liver',1,'fixed','anna','2026-01-05 08:00:00.000000','');
CREATE TABLE event (
	event_id INTEGER NOT NULL,
	created DATETIME NOT NULL,
	user VARCHAR(255) NOT NULL,
	action VARCHAR(32) NOT NULL,
	item_id INTEGER,
	round INTEGER,
	case_id VARCHAR(255),
	detail TEXT NOT NULL,
	PRIMARY KEY (event_id)
);
INSERT INTO "event" VALUES(1,'2026-01-05 08:00:00.000000','prioritize','fill',NULL,1,NULL,'3 listed, 3 new');
INSERT INTO "event" VALUES(2,'2026-01-05 08:00:00.000000','anna','lease',1,1,'a','');
INSERT INTO "event" VALUES(3,'2026-01-05 08:00:00.000000','anna','submit',1,1,'a','fixed, 20 s');
INSERT INTO "event" VALUES(4,'2026-01-05 08:00:00.000000','ben','lease',2,1,'b','');
CREATE TABLE revision (
	sequence INTEGER NOT NULL,
	round INTEGER NOT NULL,
	case_id VARCHAR(255) NOT NULL,
	organ VARCHAR(64) NOT NULL,
	revision_id INTEGER NOT NULL,
	parent_id INTEGER NOT NULL,
	user VARCHAR(255) NOT NULL,
	created DATETIME NOT NULL,
	voxels INTEGER NOT NULL,
	seconds FLOAT NOT NULL,
	runs BLOB NOT NULL,
	PRIMARY KEY (sequence),
	UNIQUE (round, case_id, organ, revision_id),
	CONSTRAINT revision_follows_parent CHECK (revision_id = parent_id + 1)
);
INSERT INTO "revision" VALUES(1,1,'a','liver',1,0,'anna','2026-01-05 08:00:00.000000',2,12.0,X'789C636660606002624620060000440007');
INSERT INTO "revision" VALUES(2,1,'a','liver',2,1,'anna','2026-01-05 08:00:00.000000',1,3.0,X'789C63616060606480000000440006');
CREATE TABLE schema_version (
	version INTEGER NOT NULL,
	PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(1);
CREATE TABLE time_entry (
	sequence INTEGER NOT NULL,
	round INTEGER NOT NULL,
	case_id VARCHAR(255) NOT NULL,
	organ VARCHAR(64),
	component INTEGER,
	user VARCHAR(255) NOT NULL,
	created DATETIME NOT NULL,
	seconds FLOAT NOT NULL,
	PRIMARY KEY (sequence)
);
INSERT INTO "time_entry" VALUES(1,1,'a','liver',1,'anna','2026-01-05 08:00:00.000000',5.0);
CREATE TABLE work_item (
	item_id INTEGER NOT NULL,
	round INTEGER NOT NULL,
	case_id VARCHAR(255) NOT NULL,
	organs JSON NOT NULL,
	rank INTEGER NOT NULL,
	score FLOAT NOT NULL,
	state VARCHAR(16) NOT NULL,
	user VARCHAR(255),
	lease_expires DATETIME,
	seconds FLOAT NOT NULL,
	note TEXT NOT NULL,
	verdict VARCHAR(16),
	review VARCHAR(16),
	reviewer VARCHAR(255),
	PRIMARY KEY (item_id),
	UNIQUE (round, case_id)
);
INSERT INTO "work_item" VALUES(1,1,'a','["liver", "aorta"]',1,1.0,'submitted','anna',NULL,20.0,'','fixed',NULL,NULL);
INSERT INTO "work_item" VALUES(2,1,'b','["liver", "aorta"]',2,0.5,'leased','ben','2026-01-05 08:30:00.000000',0.0,'',NULL,NULL,NULL);
INSERT INTO "work_item" VALUES(3,1,'c','["liver", "aorta"]',3,3.33333333333333314829e-01,'waiting',NULL,NULL,0.0,'',NULL,NULL,NULL);
CREATE INDEX work_item_order ON work_item (round, state, rank);
CREATE INDEX component_verdict_case ON component_verdict (round, case_id);
CREATE INDEX time_entry_case ON time_entry (round, case_id);
CREATE INDEX event_item ON event (item_id);
COMMIT;
