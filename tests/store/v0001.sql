BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE attempts (
	run INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	n INTEGER NOT NULL, 
	hold_id TEXT NOT NULL, 
	model TEXT NOT NULL, 
	provider TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	started_us INTEGER NOT NULL, 
	ended_us INTEGER, 
	status INTEGER, 
	error TEXT, 
	held_nanos INTEGER NOT NULL, 
	balances TEXT NOT NULL, 
	price_version TEXT, 
	expires_us INTEGER NOT NULL, 
	settled TEXT, 
	cost_nanos INTEGER, 
	CONSTRAINT pk_attempts PRIMARY KEY (run, seq, n)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "attempts" VALUES(1,1,1,'old-hold-2','gpt-4o-mini','openai','first',1760000000000000,1760000000001000,200,NULL,100,'[1, 2, 3]','p1',1760003600000000,'post',40);
INSERT INTO "attempts" VALUES(1,2,1,'old-hold-4','gpt-4o-mini','openai','first',1760000000000000,1760000000001000,200,NULL,100,'[1, 2, 3]','p1',1760003600000000,'void',0);
INSERT INTO "attempts" VALUES(2,1,1,'old-hold-6','gpt-4o-mini','openai','first',1760000000000000,1760000000001000,200,NULL,100,'[2, 3]','p1',1760003600000000,'expire',100);
INSERT INTO "attempts" VALUES(3,1,1,'old-hold-8','gpt-4o-mini','openai','first',1760000000000000,1760000000001000,200,NULL,100,'[2, 3]','p1',1760003600000000,'post',70);
INSERT INTO "attempts" VALUES(4,1,1,'old-hold-10','gpt-4o-mini','openai','first',1760000000000000,NULL,NULL,NULL,55,'[2, 3]','p1',1760003600000000,NULL,NULL);
CREATE TABLE balances (
	id INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	scope_id TEXT NOT NULL, 
	period TEXT NOT NULL, 
	posted_nanos INTEGER DEFAULT 0 NOT NULL, 
	held_nanos INTEGER DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_balances PRIMARY KEY (id), 
	CONSTRAINT ck_balances_held CHECK (held_nanos >= 0), 
	CONSTRAINT ck_balances_posted CHECK (posted_nanos >= 0), 
	CONSTRAINT uq_balances_kind_scope_id_period UNIQUE (kind, scope_id, period)
)
 STRICT

;
INSERT INTO "balances" VALUES(1,'run','crew/run-one','total',40,0);
INSERT INTO "balances" VALUES(2,'role','g1','2025-10-09',210,55);
INSERT INTO "balances" VALUES(3,'fleet','crew','2025-10-09',210,55);
CREATE TABLE calls (
	run INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	request_id TEXT NOT NULL, 
	step INTEGER, 
	role TEXT, 
	key_alias TEXT, 
	key_id TEXT, 
	grant_id TEXT, 
	endpoint TEXT NOT NULL, 
	stream INTEGER NOT NULL, 
	model_asked TEXT, 
	model_served TEXT, 
	provider TEXT, 
	state TEXT NOT NULL, 
	status INTEGER, 
	code TEXT, 
	error TEXT, 
	limit_name TEXT, 
	scope TEXT, 
	started_us INTEGER NOT NULL, 
	ended_us INTEGER, 
	ttft_us INTEGER, 
	input_tokens INTEGER, 
	output_tokens INTEGER, 
	cached_tokens INTEGER, 
	cost_nanos INTEGER, 
	held_nanos INTEGER DEFAULT 0 NOT NULL, 
	usage_source TEXT, 
	finish_reason TEXT, 
	attempts INTEGER DEFAULT 0 NOT NULL, 
	guardrails TEXT NOT NULL, 
	answer BLOB, 
	CONSTRAINT pk_calls PRIMARY KEY (run, seq), 
	CONSTRAINT uq_calls_request_id UNIQUE (request_id)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "calls" VALUES(1,1,'old-req-1',1,'writer','crew/writer','abcdefghij','g1','/v1/chat/completions',0,'gpt-4o-mini','gpt-4o-mini','openai','ok',200,NULL,NULL,NULL,NULL,1760000000000000,1760000000001000,NULL,3,4,1,40,100,'provider','stop',1,'[]',X'4239EB47A5D355567602270C2B229B34');
INSERT INTO "calls" VALUES(1,2,'old-req-3',NULL,'writer','crew/writer','abcdefghij','g1','/v1/chat/completions',0,'gpt-4o-mini','gpt-4o-mini','openai','ok',200,NULL,NULL,NULL,NULL,1760000000000000,1760000000001000,NULL,3,4,1,0,100,'provider','stop',1,'[]',X'4239EB47A5D355567602270C2B229B34');
INSERT INTO "calls" VALUES(2,1,'old-req-5',NULL,'writer','crew/writer','abcdefghij','g1','/v1/chat/completions',0,'gpt-4o-mini','gpt-4o-mini','openai','ok',200,NULL,NULL,NULL,NULL,1760000000000000,1760000000001000,NULL,3,4,1,100,100,'provider','stop',1,'[]',X'4239EB47A5D355567602270C2B229B34');
INSERT INTO "calls" VALUES(3,1,'old-req-7',NULL,'writer','crew/writer','abcdefghij','g1','/v1/chat/completions',0,'gpt-4o-mini','gpt-4o-mini','openai','ok',200,NULL,NULL,NULL,NULL,1760000000000000,1760000000001000,NULL,3,4,1,70,100,'provider','stop',1,'[]',X'4239EB47A5D355567602270C2B229B34');
INSERT INTO "calls" VALUES(4,1,'old-req-9',NULL,'writer','crew/writer','abcdefghij','g1','/v1/chat/completions',0,'gpt-4o-mini',NULL,NULL,'open',NULL,NULL,NULL,NULL,NULL,1760000000000000,NULL,NULL,NULL,NULL,NULL,NULL,55,NULL,NULL,1,'[]',NULL);
INSERT INTO "calls" VALUES(5,1,'old-req-11',NULL,'writer','crew/writer','abcdefghij','g1','/v1/chat/completions',0,'gpt-4o-mini',NULL,NULL,'refused',402,'budget_exhausted','refused: budget_exhausted','budget','role',1760000000000000,1760000000001000,NULL,NULL,NULL,NULL,0,0,'none',NULL,0,'[]',NULL);
CREATE TABLE contents (
	run INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	prompt BLOB, 
	params BLOB, 
	CONSTRAINT pk_contents PRIMARY KEY (run, seq)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "contents" VALUES(1,1,X'DA6DC3954FF1F2CFAF89C77A97377474',X'2AFB9B83F9314E5D029766197F539792');
INSERT INTO "contents" VALUES(1,2,X'DA6DC3954FF1F2CFAF89C77A97377474',X'2AFB9B83F9314E5D029766197F539792');
INSERT INTO "contents" VALUES(2,1,X'DA6DC3954FF1F2CFAF89C77A97377474',X'2AFB9B83F9314E5D029766197F539792');
INSERT INTO "contents" VALUES(3,1,X'DA6DC3954FF1F2CFAF89C77A97377474',X'2AFB9B83F9314E5D029766197F539792');
CREATE TABLE deployments (
	deployment_id TEXT NOT NULL, 
	fleet TEXT, 
	group_name TEXT NOT NULL, 
	model TEXT NOT NULL, 
	order_no INTEGER NOT NULL, 
	weight INTEGER NOT NULL, 
	CONSTRAINT pk_deployments PRIMARY KEY (deployment_id)
)
 STRICT

;
CREATE TABLE entries (
	hold_id TEXT NOT NULL, 
	slot INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	request_id TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	amount_nanos INTEGER NOT NULL, 
	balances TEXT NOT NULL, 
	price_version TEXT, 
	usage TEXT, 
	usage_source TEXT, 
	expires_us INTEGER, 
	at_us INTEGER NOT NULL, 
	CONSTRAINT pk_entries PRIMARY KEY (hold_id, slot), 
	CONSTRAINT ck_entries_amount CHECK (kind = 'correct' OR amount_nanos >= 0), 
	CONSTRAINT ck_entries_slot CHECK (slot = CASE kind WHEN 'hold' THEN 0 WHEN 'post' THEN 1 WHEN 'void' THEN 1 WHEN 'expire' THEN 1 WHEN 'correct' THEN 2 ELSE -1 END)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "entries" VALUES('old-hold-10',0,'hold','old-req-9',1,55,'[2, 3]','p1',NULL,NULL,1760003600000000,1760000000000000);
INSERT INTO "entries" VALUES('old-hold-2',0,'hold','old-req-1',1,100,'[1, 2, 3]','p1',NULL,NULL,1760003600000000,1760000000000000);
INSERT INTO "entries" VALUES('old-hold-2',1,'post','old-req-1',1,40,'[1, 2, 3]','p1','{"input":3,"output":4}','provider',NULL,1760000000001000);
INSERT INTO "entries" VALUES('old-hold-4',0,'hold','old-req-3',1,100,'[1, 2, 3]','p1',NULL,NULL,1760003600000000,1760000000000000);
INSERT INTO "entries" VALUES('old-hold-4',1,'void','old-req-3',1,0,'[1, 2, 3]','p1','{"input":3,"output":4}','provider',NULL,1760000000001000);
INSERT INTO "entries" VALUES('old-hold-6',0,'hold','old-req-5',1,100,'[2, 3]','p1',NULL,NULL,1760003600000000,1760000000000000);
INSERT INTO "entries" VALUES('old-hold-6',1,'expire','old-req-5',1,100,'[2, 3]','p1','{"input":3,"output":4}','provider',NULL,1760000000001000);
INSERT INTO "entries" VALUES('old-hold-8',0,'hold','old-req-7',1,100,'[2, 3]','p1',NULL,NULL,1760003600000000,1760000000000000);
INSERT INTO "entries" VALUES('old-hold-8',1,'post','old-req-7',1,70,'[2, 3]','p1','{"input":3,"output":4}','provider',NULL,1760000000001000);
CREATE TABLE fleets (
	fleet TEXT NOT NULL, 
	budget_nanos INTEGER, 
	budget_duration TEXT, 
	alert_at REAL, 
	rpm INTEGER, 
	tpm INTEGER, 
	models TEXT NOT NULL, 
	metadata TEXT NOT NULL, 
	blocked INTEGER NOT NULL, 
	created_us INTEGER NOT NULL, 
	updated_us INTEGER NOT NULL, 
	CONSTRAINT pk_fleets PRIMARY KEY (fleet)
)
 STRICT

;
INSERT INTO "fleets" VALUES('crew',170000000000,'1mo',0.5,100,NULL,'["gpt-4o-mini"]','{"owner": "y"}',0,1760000000000000,1760000000000000);
INSERT INTO "fleets" VALUES('other',NULL,NULL,NULL,NULL,NULL,'[]','{}',0,1760000000000000,1760000000000000);
CREATE TABLE grants (
	grant_id TEXT NOT NULL, 
	alias TEXT, 
	fleet TEXT, 
	role TEXT, 
	models TEXT NOT NULL, 
	rpm INTEGER, 
	tpm INTEGER, 
	max_parallel INTEGER, 
	budget_nanos INTEGER, 
	budget_duration TEXT, 
	alert_at REAL, 
	guardrails TEXT NOT NULL, 
	tools TEXT, 
	metadata TEXT NOT NULL, 
	blocked INTEGER NOT NULL, 
	created_us INTEGER NOT NULL, 
	updated_us INTEGER NOT NULL, 
	expires_us INTEGER, 
	revoked_us INTEGER, 
	last_used_us INTEGER, 
	CONSTRAINT pk_grants PRIMARY KEY (grant_id)
)
 STRICT

;
INSERT INTO "grants" VALUES('g1','crew/writer','crew','writer','["gpt-4o-mini"]',30,1000,4,20000000000,'1d',0.8,'["pii-filter"]','["web_search"]','{"team": "x"}',0,1760000000000000,1760000000000000,NULL,NULL,1760000000000000);
INSERT INTO "grants" VALUES('g2','crew/critic','crew','critic','[]',NULL,NULL,NULL,5000000000,NULL,NULL,'[]',NULL,'{}',0,1760000000000001,1760000000000001,NULL,NULL,NULL);
INSERT INTO "grants" VALUES('g3',NULL,NULL,NULL,'[]',NULL,NULL,NULL,NULL,NULL,NULL,'[]',NULL,'{}',1,1760000000000002,1760000000000002,NULL,NULL,NULL);
CREATE TABLE messages (
	hash BLOB NOT NULL, 
	body BLOB NOT NULL, 
	CONSTRAINT pk_messages PRIMARY KEY (hash)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "messages" VALUES(X'2AFB9B83F9314E5D029766197F539792',X'7801ABAE0500017500F9');
INSERT INTO "messages" VALUES(X'4239EB47A5D355567602270C2B229B34',X'780153CAC857020002C4011C');
INSERT INTO "messages" VALUES(X'DA6DC3954FF1F2CFAF89C77A97377474',X'780153CAC854020002B80116');
CREATE TABLE runs (
	run INTEGER NOT NULL, 
	run_id TEXT NOT NULL, 
	fleet TEXT NOT NULL, 
	grouped INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	state TEXT NOT NULL, 
	started_us INTEGER NOT NULL, 
	last_us INTEGER NOT NULL, 
	reported_state TEXT, 
	ended_us INTEGER, 
	error TEXT, 
	stopped_by TEXT, 
	stop_reported INTEGER DEFAULT 0 NOT NULL, 
	stopped_us INTEGER, 
	budget_nanos INTEGER, 
	max_calls INTEGER, 
	admitted INTEGER DEFAULT 0 NOT NULL, 
	last_seq INTEGER DEFAULT 0 NOT NULL, 
	open_calls INTEGER DEFAULT 0 NOT NULL, 
	outcome TEXT, 
	outcome_seq INTEGER DEFAULT 0 NOT NULL, 
	calls INTEGER DEFAULT 0 NOT NULL, 
	errors INTEGER DEFAULT 0 NOT NULL, 
	input_tokens INTEGER DEFAULT 0 NOT NULL, 
	output_tokens INTEGER DEFAULT 0 NOT NULL, 
	cached_tokens INTEGER DEFAULT 0 NOT NULL, 
	cost_nanos INTEGER DEFAULT 0 NOT NULL, 
	roles TEXT NOT NULL, 
	models TEXT NOT NULL, 
	CONSTRAINT pk_runs PRIMARY KEY (run), 
	CONSTRAINT uq_runs_run_id_fleet UNIQUE (run_id, fleet)
)
 STRICT

;
INSERT INTO "runs" VALUES(1,'run-one','crew',1,'run-one','ok',1760000000000000,1760000000001000,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,2,2,0,'ok',2,2,0,6,8,2,40,'["writer"]','["gpt-4o-mini"]');
INSERT INTO "runs" VALUES(2,'old-req-5','crew',0,'gpt-4o-mini','ok',1760000000000000,1760000000001000,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,1,1,0,'ok',1,1,0,3,4,1,100,'["writer"]','["gpt-4o-mini"]');
INSERT INTO "runs" VALUES(3,'old-req-7','crew',0,'gpt-4o-mini','ok',1760000000000000,1760000000001000,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,1,1,0,'ok',1,1,0,3,4,1,70,'["writer"]','["gpt-4o-mini"]');
INSERT INTO "runs" VALUES(4,'old-req-9','crew',0,'gpt-4o-mini','running',1760000000000000,1760000000000000,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,1,1,1,NULL,0,1,0,0,0,0,0,'["writer"]','["gpt-4o-mini"]');
INSERT INTO "runs" VALUES(5,'old-req-11','crew',0,'gpt-4o-mini','stopped',1760000000000000,1760000000001000,NULL,NULL,'refused: budget_exhausted','{"kind":"budget","code":"budget_exhausted","scope":"role","limit":"budget","step":null,"request_id":"req-11","message":"refused: budget_exhausted"}',0,NULL,NULL,NULL,0,1,0,'stopped',1,1,1,0,0,0,0,'["writer"]','["gpt-4o-mini"]');
CREATE TABLE secrets (
	public_id TEXT NOT NULL, 
	grant_id TEXT NOT NULL, 
	digest BLOB NOT NULL, 
	created_us INTEGER NOT NULL, 
	expires_us INTEGER, 
	revoked_us INTEGER, 
	CONSTRAINT pk_secrets PRIMARY KEY (public_id)
)
 STRICT

;
INSERT INTO "secrets" VALUES('abcdefghij','g1',X'0102',1760000000000000,NULL,NULL);
CREATE TABLE steps (
	run INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	step TEXT NOT NULL, 
	parent TEXT, 
	role TEXT, 
	state TEXT NOT NULL, 
	reported_state TEXT, 
	started_us INTEGER NOT NULL, 
	last_us INTEGER NOT NULL, 
	ended_us INTEGER, 
	error TEXT, 
	open_calls INTEGER DEFAULT 0 NOT NULL, 
	outcome TEXT, 
	outcome_seq INTEGER DEFAULT 0 NOT NULL, 
	calls INTEGER DEFAULT 0 NOT NULL, 
	errors INTEGER DEFAULT 0 NOT NULL, 
	input_tokens INTEGER DEFAULT 0 NOT NULL, 
	output_tokens INTEGER DEFAULT 0 NOT NULL, 
	cached_tokens INTEGER DEFAULT 0 NOT NULL, 
	cost_nanos INTEGER DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_steps PRIMARY KEY (run, seq)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "steps" VALUES(1,1,'plan',NULL,'writer','ok',NULL,1760000000000000,1760000000001000,NULL,NULL,0,'ok',1,1,0,3,4,1,40);
CREATE INDEX ix_attempts_open ON attempts (expires_us) WHERE settled IS NULL;
CREATE INDEX ix_calls_started ON calls (started_us);
CREATE INDEX ix_runs_fleet ON runs (fleet, started_us);
CREATE INDEX ix_runs_grouped ON runs (started_us) WHERE grouped = 1;
CREATE INDEX ix_runs_started ON runs (started_us);
CREATE INDEX ix_runs_state ON runs (state, started_us);
CREATE INDEX ix_secrets_grant ON secrets (grant_id);
CREATE TRIGGER entries_no_update BEFORE update ON entries
BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END;
CREATE TRIGGER entries_no_delete BEFORE delete ON entries
BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END;
COMMIT;
