package script

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"holdfast/internal/pg/pgtest"
)

// TestSeveralStanzas: two clusters in one configuration and one repository, none in the other's way; with the guide's examples of
// monitoring, annotations, parallel backups, stop of everything and the end of a stanza.
func TestSeveralStanzas(t *testing.T) {
	r := newRig(t, "repo1-retention-full=3\nstart-fast=y\nlog-level-console=info")
	alt := pgtest.New(t, pgtest.Options{Checksums: true, WALSegMB: 1, Settings: map[string]string{"archive_mode": "on", "wal_level": "replica", "checkpoint_timeout": "1h",
		"archive_command": r.name + " --config=" + r.conf + " --stanza=demo-alt archive-push %p"}})
	r.configure(fmt.Sprintf("repo1-retention-full=3\nstart-fast=y\nlog-level-console=info\n[demo-alt]\npg1-path=%s\npg1-socket-path=%s\npg1-port=%d\n", alt.DataDir(), alt.SocketDir(), alt.Port()))
	r.run("--stanza=demo stanza-create")
	has(t, r.want(55, "check"), "check stanza 'demo'", "stanza demo-alt: stanza does not exist") // the other one has none yet
	r.run("--stanza=demo-alt stanza-create")
	has(t, r.run("check"), "check stanza 'demo'", "check stanza 'demo-alt'", "/archive/demo/15-1/", "/archive/demo-alt/15-1/")
	r.insert("of demo")
	alt.Exec(t, "create table important_table (message text)", "insert into important_table values ('of demo-alt')")
	demo := r.backup0("--stanza=demo --process-max=3 --type=full backup")
	other := r.backup0("--stanza=demo-alt backup")

	r.monitoring(demo)
	r.annotations()

	// Stop: of all, then of one.
	r.run("stop")
	has(t, r.want(62, "--stanza=demo backup"), "ERROR: [062]: ", "stop file exists for all stanzas")
	has(t, r.run("stop"), "WARN: stop file already exists for all stanzas")
	r.run("start")
	r.run("--stanza=demo-alt stop")
	has(t, r.want(62, "--stanza=demo-alt backup"), "ERROR: [062]: ", "stop file exists for stanza demo-alt")
	r.backup0("--stanza=demo backup")

	// The end of one stanza is not that of the other.
	alt.Stop(t, "fast")
	data := filepath.Join(ownDir(t), "data")
	r.run("--stanza=demo-alt start")
	r.run("--stanza=demo-alt --process-max=3 --set=" + other + " --type=immediate --pg1-path=" + data + " restore")
	r.run("--stanza=demo-alt stop")
	r.run("--stanza=demo-alt --repo=1 stanza-delete")
	info := r.run("info")
	has(t, info, "stanza: demo\n", demo)
	hasNot(t, info, "demo-alt")
	r.archive()
	r.lose()
	r.run("--stanza=demo --process-max=3 restore")
	r.start()
	if got := r.rows(); got != "of demo" {
		t.Error(got)
	}
	r.run("--stanza=demo verify")
	r.otherHosts()
}

// monitoring is the guide's: the server reads what info prints as JSON, and asks it for the last backup and segment; a program
// that takes the original's JSON apart finds all of it.
func (r *rig) monitoring(label string) {
	t := r.t
	t.Helper()
	r.c.Exec(t, "create schema monitor", `create function monitor.pgbackrest_info() returns jsonb as $$
declare data jsonb;
begin
	create temp table temp_pgbackrest_data (data text);
	copy temp_pgbackrest_data (data) from program '`+r.name+" --config="+r.conf+` --output=json info' (format text);
	select temp_pgbackrest_data.data into data from temp_pgbackrest_data;
	drop table temp_pgbackrest_data;
	return data;
end $$ language plpgsql`)
	got := r.c.QueryString(t, `with stanza as (select data->>'name' as name, data->'backup'->(jsonb_array_length(data->'backup') - 1) as last_backup, data->'archive'->(jsonb_array_length(data->'archive') - 1) as current_archive
	from jsonb_array_elements(monitor.pgbackrest_info()) as data)
select string_agg(name || ' ' || (last_backup->>'label' ~ '^\d{8}-\d{6}F$')::text || ' ' || (to_timestamp((last_backup->'timestamp'->>'stop')::numeric) <= now())::text || ' ' || (current_archive->>'max' ~ '^[0-9A-F]{24}$')::text, ', ' order by name) from stanza`)
	if got != "demo true true true, demo-alt true true true" {
		t.Error(got)
	}
	var ours, theirs any
	for program, into := range map[string]*any{r.run("--stanza=demo --output=json --log-level-console=off info"): &ours, r.original("--stanza=demo --output=json --log-level-console=off info"): &theirs} {
		if err := json.Unmarshal([]byte(program), into); err != nil {
			t.Fatal(err, program)
		}
	}
	if !reflect.DeepEqual(ours, theirs) {
		t.Errorf("info as JSON\n%v\nthe original's\n%v", ours, theirs)
	}
	if last := ours.([]any)[0].(map[string]any)["backup"].([]any)[0].(map[string]any)["label"]; last != label {
		t.Error(last)
	}
}

// annotations are set by backup, and added, changed and removed by annotate.
func (r *rig) annotations() {
	r.t.Helper()
	s := r.program(r.name, "--config="+r.conf, "--stanza=demo", "--annotation=source=demo backup", "--annotation=key=value", "--type=full", "backup")
	m := newLabel.FindStringSubmatch(s.out)
	if s.code != 0 || m == nil {
		r.t.Fatalf("%+v", s)
	}
	show := "--stanza=demo --log-level-console=off --set=" + m[1] + " info"
	info := r.run(show)
	has(r.t, info, "annotation(s)\n", "key: value\n", "source: demo backup\n")
	if theirs := r.original(show); info != theirs {
		r.t.Errorf("%s\nthe original:\n%s", info, theirs)
	}
	r.run("--stanza=demo --set=" + m[1] + " --annotation=key= --annotation=new_key=new_value annotate")
	info = r.run(show)
	has(r.t, info, "new_key: new_value\n", "source: demo backup\n")
	hasNot(r.t, info, " key:")
	if theirs := r.original(show); info != theirs {
		r.t.Errorf("%s\nthe original:\n%s", info, theirs)
	}
}

// otherHosts: what the guide's dedicated repository host needs is refused by name, with what to do instead, before anything is
// done, from the file that the guide writes on either host.
func (r *rig) otherHosts() {
	t := r.t
	t.Helper()
	conf := filepath.Join(r.dir, "hosts.conf")
	onRepository := "[global]\nrepo1-path=/var/lib/pgbackrest\nrepo1-retention-full=2\nstart-fast=y\n[demo]\npg1-path=/var/lib/postgresql/15/demo\npg1-host=pg-primary\n"
	onPrimary := "[global]\nrepo1-host=repository\nlog-level-file=detail\n[demo]\npg1-path=/var/lib/postgresql/15/demo\n"
	for _, c := range []struct {
		conf, args string
		want       []string
	}{
		{onRepository, "--stanza=demo stanza-create", []string{"option 'pg1-host=pg-primary' is not done by Holdfast: stanza-create needs the files of a data directory on this host", "HINT: run it on the host of PostgreSQL, without pg1-host"}},
		{onRepository, "--stanza=demo backup", []string{"option 'pg1-host=pg-primary' is not done by Holdfast: backup needs the files", "HINT: run it on the host of PostgreSQL"}},
		{onRepository + "pg1-host-type=tls\npg1-host-ca-file=/ca\npg1-host-cert-file=/c\npg1-host-key-file=/k\n", "--stanza=demo backup", []string{"option 'pg1-host-ca-file=/ca' is not done by Holdfast", "reached by its own protocol"}},
		{onPrimary, "--stanza=demo backup", []string{"option 'repo1-host=repository' is not done by Holdfast", "mount the repository here and set repo1-path"}},
		{onPrimary, "--stanza=demo archive-push pg_wal/000000010000000000000001", []string{"option 'repo1-host=repository' is not done by Holdfast"}},
		{onPrimary, "--stanza=demo restore", []string{"option 'repo1-host=repository' is not done by Holdfast"}},
		{onPrimary, "info", []string{"option 'repo1-host=repository' is not done by Holdfast"}},
		{"[global]\ntls-server-address=*\ntls-server-auth=pgbackrest-client=demo\ntls-server-ca-file=/ca\ntls-server-cert-file=/c\ntls-server-key-file=/k\n", "server", []string{"command 'server' is not done by Holdfast", "HINT: there is no server"}},
	} {
		if err := os.WriteFile(conf, []byte(c.conf), 0o644); err != nil {
			t.Fatal(err)
		}
		s := r.program(r.name, append([]string{"--config=" + conf, "--lock-path=" + r.dir + "/lock", "--log-level-file=off"}, strings.Fields(c.args)...)...)
		if c.args == "server" {
			s = r.program(r.name, "--config="+conf, "--log-level-file=off", "server")
		}
		if s.code != 31 {
			t.Errorf("%s: %+v", c.args, s)
		}
		has(t, s.errs, append(c.want, "ERROR: [031]: ")...)
	}
}
