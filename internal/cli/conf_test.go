package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/internal/conf"
)

// wrongValue is a value that a parameter of the type cannot have; "" = there is none but the empty one.
var wrongValue = map[conf.Type]string{
	conf.Bool: "maybe", conf.Int: "4.5", conf.Seconds: "ten", conf.Enum: "zzz", conf.Path: "a\tb", conf.List: "a,,b", conf.URL: "ftp://host/", conf.Version: "10.0",
	conf.Clusters: "stanza", conf.String: "two\nlines", conf.SecretT: "SECRET\nLINE",
	conf.Cron: "0 25 * * *", conf.Zone: "Mars/Olympus", conf.Listen: "9876",
}

// TestEveryParameterRefusesWrongType sets every parameter of the table to what it cannot be, alone and behind a good pair,
// under both names of the command. The message says which parameter, what was given and what is expected; nothing is stored.
func TestEveryParameterRefusesWrongType(t *testing.T) {
	r := newRig(t)
	r.run("alation_conf", "alation.backup.scheduled_hour", "-s", "5").has(t, exitOK, "alation.backup.scheduled_hour = 5")
	before := r.stored()
	for _, k := range conf.Table() {
		wrong, ok := wrongValue[k.Type]
		if !ok {
			t.Errorf("%s: no wrong value for the type %s", k.Name, k.Type)
			continue
		}
		good := "alation.backup.scheduled_minute"
		if k.Name == good {
			good = "alation.backup_v2.retention.days"
		}
		for _, words := range [][]string{
			{"alation_conf", k.Name, "-s", wrong},
			{"holdfast", "conf", k.Name, "-s", wrong},
			{"alation_conf", good, "-s", "7", k.Name, "-s", wrong},
		} {
			got := r.run(words...)
			got.has(t, exitUsage, k.Name+": ", k.AllowedText())
			if given := strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(wrong); k.Secret() == strings.Contains(got.errs, given) {
				t.Errorf("%s: what was given must be shown, and a secret must not:\n%s", k.Name, got.errs)
			}
			if got.out != "" {
				t.Errorf("%v printed a result:\n%s", words, got.out)
			}
		}
	}
	if after := r.stored(); !bytes.Equal(before, after) {
		t.Errorf("the store has changed:\n%s\n%s", before, after)
	}
	r.run("alation_conf", "alation.backup.scheduled_minute").has(t, exitOK, "alation.backup.scheduled_minute = 0")
	r.run("alation_conf", "alation.backup_v2.retention.days").has(t, exitOK, "alation.backup_v2.retention.days = 0")
}

func (r *rig) stored() []byte {
	r.t.Helper()
	b, err := os.ReadFile(r.in.ConfPath())
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// TestConfGrammar: the command line of alation_conf, one call a line.
func TestConfGrammar(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		line, stdin string
		code        int
		want        string // of both streams
	}{
		{"snapshot.enabled", "", 0, "snapshot.enabled = True\n"},
		{"snapshot.enabled -s False", "", 0, "snapshot.enabled = False\n"},
		{"-s true snapshot.enabled -s 6 alation.backup.scheduled_hour", "", 0, "snapshot.enabled = True\nalation.backup.scheduled_hour = 6\n"},
		{"snapshot.enable", "", 2, `unknown parameter "snapshot.enable": did you mean snapshot.enabled?`},
		{"pgbackup_compression -s False", "", 2, "did you mean alation.backup_v2.pgbackup_compression?"},
		{"alation.backup.scheduled_huor", "", 2, "did you mean alation.backup.scheduled_hour?"},
		{"quite_another_thing", "", 2, "see `alation_conf --list`"},
		{"snapshot.enabled -s False no.such -s 1", "", 2, `unknown parameter "no.such"`},
		{"snapshot.enabled", "", 0, "snapshot.enabled = True\n"}, // the first of the pair above was not set either
		{"snapshot.enabled -s False alation.backup.scheduled_hour", "", 2, "has no -s VALUE; nothing was changed"},
		{"pgsql.pgbackrest.block -s True", "", 2, "pgsql.pgbackrest.bundle = True"},
		{"pgsql.pgbackrest.block -s True pgsql.pgbackrest.bundle -s True", "", 0, "pgsql.pgbackrest.bundle = True\n"},
		{"pgsql.pgbackrest.repo_dir_name -s data2/other", "", 0, "to make it take effect: run `alation_action enable_backupv2`\n"},
		{"--unset pgsql.pgbackrest.block pgsql.pgbackrest.bundle", "", 0, "pgsql.pgbackrest.block = False\n"},
		{"pgsql.pgbackrest.redundancy.s3.secret -s -", "PLANTED\n", 0, "pgsql.pgbackrest.redundancy.s3.secret = ******\n"},
		{"pgsql.pgbackrest.redundancy.s3.secret -s -", "", 2, "standard input ended before the value"},
		{"pgsql.pgbackrest.redundancy.s3.endpoint -s", "", 0, "pgsql.pgbackrest.redundancy.s3.endpoint = \n"},
		{"--list snapshot", "", 0, "snapshot.enabled = True\n"},
		{"--help", "", 0, "usage: alation_conf KEY"},
		{"", "", 2, "which parameter?"},
		{"--nonsense", "", 2, `unknown option "--nonsense"`},
		{"--root /nowhere/at/all snapshot.enabled", "", 5, "holdfast init"},
	} {
		words := append([]string{"alation_conf"}, strings.Fields(c.line)...)
		got := r.typed(c.stdin, words...)
		if got.code != c.code || !strings.Contains(got.out+got.errs, c.want) || strings.Contains(got.out+got.errs, "PLANTED") {
			t.Errorf("%v: code %d, want %d and %q:\n%s%s", words, got.code, c.code, c.want, got.out, got.errs)
		}
		if got.code != 0 && !strings.HasPrefix(got.errs, "alation_conf: ") {
			t.Errorf("%v: the error does not begin with the command's name:\n%s", words, got.errs)
		}
	}
	if strings.Contains(string(r.stored()), "PLANTED") {
		t.Error("a secret stands in clear in the store")
	}
}

// TestConfJSON: one document, for results and for errors, wherever --json stands.
func TestConfJSON(t *testing.T) {
	r := newRig(t)
	type entry struct{ Name, Value string }
	for _, words := range [][]string{{"alation_conf", "--json", "snapshot.enabled"}, {"holdfast", "conf", "--json", "snapshot.enabled"}, {"holdfast", "--json", "conf", "snapshot.enabled"}} {
		var e entry
		got := r.run(words...)
		if err := json.Unmarshal([]byte(got.out), &e); err != nil || got.code != 0 || e != (entry{"snapshot.enabled", "True"}) {
			t.Errorf("%v: %v\n%s%s", words, err, got.out, got.errs)
		}
	}
	var list []entry
	if got := r.run("alation_conf", "--json", "--list"); json.Unmarshal([]byte(got.out), &list) != nil || len(list) != len(conf.Table()) {
		t.Errorf("%d entries, %d parameters\n%s", len(list), len(conf.Table()), got.errs)
	}
	for _, words := range [][]string{
		{"alation_conf", "--json", "no.such"}, {"holdfast", "conf", "--json", "no.such"}, {"holdfast", "--json", "conf", "no.such"}, {"alation_conf", "--json", "--nonsense"}, {"alation_conf", "--json"},
	} {
		got := r.run(words...)
		var e struct {
			Error string
			Code  int
		}
		if err := json.Unmarshal([]byte(got.out), &e); err != nil || got.code != exitUsage || e.Code != exitUsage || e.Error == "" || got.errs != "" {
			t.Errorf("%v: code %d, %v\n%s%s", words, got.code, err, got.out, got.errs)
		}
	}
}

func TestConfirm(t *testing.T) {
	for in, ok := range map[string]bool{
		"YES\n": true, "YES\r\n": true, "YES": true, "YES\nmore\n": true,
		"": false, "\n": false, "yes\n": false, "Y\n": false, "YES \n": false, " YES\n": false, "YES!\n": false, "no\nYES\n": false, "YES" + strings.Repeat("\n ", maxAnswer): true,
		strings.Repeat("Y", 3*maxAnswer): false,
	} {
		env, out, errs := bareEnv(strings.NewReader(in))
		err := env.confirm(t.Context(), "Type YES to go on", "YES")
		if (err == nil) != ok || err != nil && (exitCode(err) != exitRefused || !strings.Contains(err.Error(), "nothing was changed")) {
			t.Errorf("%.20q: %v", in, err)
		}
		if errs.String() != "Type YES to go on [YES]: " || out.Len() > 0 {
			t.Errorf("%.20q printed %q and %q", in, out, errs)
		}
	}
}

// TestConfirmIsInterrupted: an interrupt at the prompt ends the command at once, without another key.
func TestConfirmIsInterrupted(t *testing.T) {
	r, w := io.Pipe() // nobody types
	defer w.Close()
	env, _, _ := bareEnv(r)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- env.confirm(ctx, "Type YES to go on", "YES") }()
	cancel()
	select {
	case err := <-done:
		if exitCode(err) != exitSignal {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still waiting for an answer")
	}
}
