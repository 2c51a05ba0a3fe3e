package pg

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestMachineTexts reads what the programs of several systems print.
func TestMachineTexts(t *testing.T) {
	for text, want := range map[string]string{
		"ldd (Debian GLIBC 2.36-9+deb12u14) 2.36\nCopyright (C) 2022": "glibc 2.36",
		"ldd (Ubuntu GLIBC 2.39-0ubuntu8.6) 2.39\n":                   "glibc 2.39",
		"ldd (GNU libc) 2.34\n":                                       "glibc 2.34",
		"musl libc (x86_64)\nVersion 1.2.4\nDynamic Program Loader\n": "musl 1.2.4",
		"sh: ldd: not found\n":                                        "",
		"":                                                            "",
	} {
		if got := libcOf(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if got := icuOf("\tlibxml2.so.2 => /lib/x\n\tlibicui18n.so.72 => /lib/x86_64-linux-gnu/libicui18n.so.72 (0x1)\n"); got != "72" {
		t.Errorf("ICU %q", got)
	}
	if got := icuOf("\tnot a dynamic executable\n"); got != "" {
		t.Errorf("ICU %q", got)
	}
	for text, want := range map[string]string{"postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n": "15", "postgres (PostgreSQL) 18beta1\n": "18", "sh: no\n": "", "": ""} {
		if got := serverVersion(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestHasLocale: an encoding has many spellings, another language or modifier is another locale.
func TestHasLocale(t *testing.T) {
	installed := []string{"C", "C.utf8", "POSIX", "de_DE", "de_DE.iso88591", "de_DE@euro", "en_US.utf8", "german"}
	for name, want := range map[string]bool{
		"": true, "C": true, "POSIX": true, "C.UTF-8": true, "en_US.UTF-8": true, "en_US.utf8": true, "de_DE.ISO-8859-1": true, "german": true, "de_DE@euro": true,
		"en_US": false, "fr_FR.UTF-8": false, "en_US.UTF-8@euro": false, "en_GB.UTF-8": false,
	} {
		if HasLocale(installed, name) != want {
			t.Errorf("%q: %v, want %v", name, !want, want)
		}
	}
}

// TestPrograms looks into an installation made for it: what is there, what is not, and names that are no names.
func TestPrograms(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"bin/postgres", "bin/pg_ctl", "share/postgresql/extension/plpgsql.control", "share/postgresql/extension/pg_trgm.control", "lib/plpgsql.so", "lib/pg_stat_statements.so", "outside.control"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte("#!/bin/sh\necho 'postgres (PostgreSQL) 16.4'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := ProgramsOf(filepath.Join(dir, "bin"), 16)
	type answer struct{ has, known bool }
	for name, want := range map[string]answer{"plpgsql": {true, true}, "pg_trgm": {true, true}, "timescaledb": {false, true}, "../../../outside": {}, "": {}, ".": {}} {
		if has, known := p.HasExtension(name); (answer{has, known}) != want {
			t.Errorf("extension %q: %v %v, want %v", name, has, known, want)
		}
	}
	for name, want := range map[string]answer{"pg_stat_statements": {true, true}, "$libdir/pg_stat_statements": {true, true}, "pg_stat_statements.so": {true, true}, "timescaledb": {false, true}, "/opt/x": {}, "": {}} {
		if has, known := p.HasLibrary(name); (answer{has, known}) != want {
			t.Errorf("library %q: %v %v, want %v", name, has, known, want)
		}
	}
	if _, known := (Programs{}).HasExtension("plpgsql"); known {
		t.Error("an installation that was not found knows its extensions")
	}
	if err := CheckBinDir(t.Context(), p.BinDir, 16); err != nil {
		t.Error(err)
	}
	for v, dir := range map[Version]string{15: p.BinDir, 16: dir} {
		if err := CheckBinDir(t.Context(), dir, v); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s as %s: %v", dir, v, err)
		}
	}
	if m := MachineOf(t.Context(), ""); m.Arch != runtime.GOARCH || m.Libc == "" {
		t.Errorf("this machine is %+v", m)
	}
	if !HasLocale(InstalledLocales(t.Context()), "C.UTF-8") {
		t.Errorf("no C.UTF-8 among %v", InstalledLocales(t.Context()))
	}
}
