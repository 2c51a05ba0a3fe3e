package pg

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestConfigFile(t *testing.T) {
	dir := t.TempDir()
	etc, data, old := filepath.Join(dir, "etc"), filepath.Join(dir, "data"), filepath.Join(dir, "old")
	conf, other := filepath.Join(etc, "15/main/postgresql.conf"), filepath.Join(etc, "16/other/postgresql.conf")
	write := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what, want string) {
		t.Helper()
		if got := configFile(data, old, etc); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	want("nothing at all", "")
	write(conf, "# data_directory = '/elsewhere'\nport = 5432\n  data_directory = '"+data+"/'\t\t# use data in another directory\n")
	write(other, "data_directory = '/somewhere'\n")
	want("of /etc", conf)
	write(filepath.Join(data, "postmaster.opts"), `/usr/lib/postgresql/15/bin/postgres "-D" "`+data+`" "-c" "config_file=`+other+"\"\n")
	want("of the last start", other)
	write(filepath.Join(old, "postmaster.opts"), `/usr/lib/postgresql/15/bin/postgres "-D" "`+data+`" "--config_file=`+conf+"\"\n")
	want("of the last start on what was replaced", conf)
	write(filepath.Join(old, "postmaster.opts"), `/usr/lib/postgresql/15/bin/postgres "-D" "`+data+`" "-c" "config_file=/not/there"`+"\n")
	want("one that is gone", other)
}
