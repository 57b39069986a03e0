CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
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
	cost_nanos INTEGER, wait_ms INTEGER DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_attempts PRIMARY KEY (run, seq, n)
)
 WITHOUT ROWID,
 STRICT

;
CREATE INDEX ix_attempts_open ON attempts (expires_us) WHERE settled IS NULL;
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
	answer BLOB, shadow TEXT, parent_span TEXT, 
	CONSTRAINT pk_calls PRIMARY KEY (run, seq), 
	CONSTRAINT uq_calls_request_id UNIQUE (request_id)
)
 WITHOUT ROWID,
 STRICT

;
CREATE INDEX ix_calls_started ON calls (started_us);
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
CREATE TABLE deployments (
	deployment_id TEXT NOT NULL, 
	fleet TEXT, 
	group_name TEXT NOT NULL, 
	model TEXT NOT NULL, 
	order_no INTEGER NOT NULL, 
	weight INTEGER NOT NULL, context_tokens INTEGER, options TEXT DEFAULT '{}' NOT NULL, applied TEXT, 
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
CREATE TABLE fleets (
	fleet TEXT NOT NULL, 
	rpm INTEGER, 
	tpm INTEGER, 
	models TEXT NOT NULL, 
	metadata TEXT NOT NULL, 
	blocked INTEGER NOT NULL, 
	created_us INTEGER NOT NULL, 
	updated_us INTEGER NOT NULL, budgets TEXT DEFAULT '[]' NOT NULL, shadow TEXT DEFAULT '[]' NOT NULL, max_parallel INTEGER, 
	CONSTRAINT pk_fleets PRIMARY KEY (fleet)
)
 STRICT

;
CREATE TABLE grants (
	grant_id TEXT NOT NULL, 
	alias TEXT, 
	fleet TEXT, 
	role TEXT, 
	models TEXT NOT NULL, 
	rpm INTEGER, 
	tpm INTEGER, 
	max_parallel INTEGER, 
	guardrails TEXT NOT NULL, 
	tools TEXT, 
	metadata TEXT NOT NULL, 
	blocked INTEGER NOT NULL, 
	created_us INTEGER NOT NULL, 
	updated_us INTEGER NOT NULL, 
	expires_us INTEGER, 
	revoked_us INTEGER, 
	last_used_us INTEGER, budgets TEXT DEFAULT '[]' NOT NULL, shadow TEXT DEFAULT '[]' NOT NULL, model_limits TEXT DEFAULT '[]' NOT NULL, loop TEXT, request_nanos INTEGER, cache_ttl_s INTEGER, 
	CONSTRAINT pk_grants PRIMARY KEY (grant_id)
)
 STRICT

;
CREATE TABLE messages (
	hash BLOB NOT NULL, 
	body BLOB NOT NULL, day INTEGER DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_messages PRIMARY KEY (hash)
)
 WITHOUT ROWID,
 STRICT

;
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
	models TEXT NOT NULL, trace_id TEXT, traced INTEGER DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_runs PRIMARY KEY (run), 
	CONSTRAINT uq_runs_run_id_fleet UNIQUE (run_id, fleet)
)
 STRICT

;
CREATE INDEX ix_runs_fleet ON runs (fleet, started_us);
CREATE INDEX ix_runs_grouped ON runs (started_us) WHERE grouped = 1;
CREATE INDEX ix_runs_started ON runs (started_us);
CREATE INDEX ix_runs_state ON runs (state, started_us);
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
CREATE INDEX ix_secrets_grant ON secrets (grant_id);
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
CREATE TRIGGER entries_no_update BEFORE update ON entries
BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END;
CREATE TRIGGER entries_no_delete BEFORE delete ON entries
BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END;
CREATE TABLE events (
	seq INTEGER NOT NULL, 
	once TEXT NOT NULL, 
	event_id TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	at_us INTEGER NOT NULL, 
	fleet TEXT, 
	role TEXT, 
	message TEXT NOT NULL, 
	facts TEXT NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (seq), 
	CONSTRAINT uq_events_once UNIQUE (once)
)
 STRICT

;
CREATE TABLE deliveries (
	event_seq INTEGER NOT NULL, 
	webhook TEXT NOT NULL, 
	attempts INTEGER DEFAULT 0 NOT NULL, 
	due_us INTEGER, 
	done_us INTEGER, 
	error TEXT, 
	CONSTRAINT pk_deliveries PRIMARY KEY (event_seq, webhook)
)
 WITHOUT ROWID,
 STRICT

;
CREATE INDEX ix_deliveries_due ON deliveries (due_us) WHERE due_us IS NOT NULL;
CREATE TABLE documents (
	name TEXT NOT NULL, 
	body BLOB NOT NULL, 
	updated_us INTEGER NOT NULL, 
	CONSTRAINT pk_documents PRIMARY KEY (name)
)
 STRICT

;
CREATE TABLE changes (
	seq INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	id TEXT NOT NULL, 
	at_us INTEGER NOT NULL, 
	CONSTRAINT pk_changes PRIMARY KEY (seq)
)
 STRICT

;
CREATE TABLE spans (
	run INTEGER NOT NULL, 
	span_id TEXT NOT NULL, 
	parent_id TEXT, 
	kind TEXT NOT NULL, 
	name TEXT NOT NULL, 
	step TEXT, 
	role TEXT, 
	state TEXT NOT NULL, 
	started_us INTEGER NOT NULL, 
	ended_us INTEGER, 
	error TEXT, 
	request_id TEXT, 
	model TEXT, 
	input_tokens INTEGER, 
	output_tokens INTEGER, 
	attributes TEXT NOT NULL, 
	input BLOB, 
	output BLOB, 
	CONSTRAINT pk_spans PRIMARY KEY (run, span_id)
)
 WITHOUT ROWID,
 STRICT

;
CREATE INDEX ix_runs_trace ON runs (trace_id, fleet) WHERE trace_id IS NOT NULL;
CREATE INDEX ix_messages_day ON messages (day);
CREATE TABLE prunings (
	pruning TEXT NOT NULL, 
	at_us INTEGER NOT NULL, 
	cut_us INTEGER NOT NULL, 
	runs INTEGER DEFAULT 0 NOT NULL, 
	calls INTEGER DEFAULT 0 NOT NULL, 
	holds INTEGER DEFAULT 0 NOT NULL, 
	cost_nanos INTEGER DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_prunings PRIMARY KEY (pruning)
)
 STRICT

;
INSERT INTO alembic_version(version_num) VALUES ('0005');
