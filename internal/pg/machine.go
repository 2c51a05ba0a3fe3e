package pg

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Machine is what of a machine the files of a cluster depend on. An empty field: it could not be found out.
type Machine struct {
	Arch string // as Go calls it: amd64
	Libc string // "glibc 2.36", "musl 1.2.4"
	ICU  string // major version of the library that the server program uses: "72"
}

// lookTime bounds each program that is asked.
const lookTime = 10 * time.Second

// MachineOf looks at this machine, and at the server program in binDir ("" is not looked at) for the libraries that it uses.
func MachineOf(ctx context.Context, binDir string) Machine {
	m := Machine{Arch: runtime.GOARCH, Libc: libcOf(output(ctx, "ldd", "--version"))}
	if binDir != "" {
		m.ICU = icuOf(output(ctx, "ldd", filepath.Join(binDir, "postgres")))
	}
	return m
}

// output is what a program prints, on both streams: musl's answers on standard error, with an exit code. One that is not there says nothing.
func output(ctx context.Context, name string, args ...string) string {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, "/"
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run() // what it said counts
	return out.String()
}

// libcOf reads "ldd (Debian GLIBC 2.36-9+deb12u13) 2.36", "ldd (GNU libc) 2.34", and musl's "Version 1.2.4" in a line of its own.
func libcOf(text string) string {
	first, rest, _ := strings.Cut(text, "\n")
	if strings.HasPrefix(first, "musl") {
		for line := range strings.SplitSeq(rest, "\n") {
			if v, ok := strings.CutPrefix(line, "Version "); ok {
				return "musl " + strings.TrimSpace(v)
			}
		}
		return "musl"
	}
	words := strings.Fields(first)
	if len(words) < 2 || words[0] != "ldd" || strings.Trim(words[len(words)-1], "0123456789.") != "" {
		return ""
	}
	return "glibc " + words[len(words)-1]
}

// icuOf finds "libicui18n.so.72 => …" in what ldd prints.
func icuOf(text string) string {
	_, after, found := strings.Cut(text, "libicui18n.so.")
	if !found {
		return ""
	}
	return after[:len(after)-len(strings.TrimLeft(after, "0123456789"))]
}

// HasLocale says whether libc's locale of that name is among those that the machine has (as InstalledLocales lists them): names of
// encodings are written in many ways.
func HasLocale(installed []string, name string) bool {
	if name == "" || name == "C" || name == "POSIX" {
		return true
	}
	want := sameLocale(name)
	return slices.ContainsFunc(installed, func(have string) bool { return sameLocale(have) == want })
}

// sameLocale writes en_US.UTF-8, en_US.utf8 and en_US.UTF8 the same way.
func sameLocale(name string) string {
	language, rest, _ := strings.Cut(name, ".")
	encoding, modifier, _ := strings.Cut(rest, "@")
	encoding = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, strings.ToLower(encoding))
	return language + "." + encoding + "@" + modifier
}

// InstalledLocales lists the locales of the machine's libc; none when it does not say.
func InstalledLocales(ctx context.Context) []string {
	var names []string
	for line := range strings.SplitSeq(output(ctx, "locale", "-a"), "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.ContainsAny(line, " :") {
			names = append(names, line)
		}
	}
	if !slices.Contains(names, "C") && !slices.Contains(names, "POSIX") {
		return nil // no list, whatever it said
	}
	return names
}

// Programs is one installation of PostgreSQL's server.
type Programs struct {
	BinDir  string
	Share   string // holds extension/; "" where it was not found
	Library string // holds the server's own libraries; "" where it was not found
}

// ProgramsOf looks around binDir for the rest of the installation, in the places of Debian's, of the PostgreSQL project's and of
// built ones. plpgsql is part of every installation: what has it is the place.
func ProgramsOf(binDir string, v Version) Programs {
	p := Programs{BinDir: binDir}
	up := filepath.Dir(binDir)
	for _, dir := range []string{filepath.Join(up, "share"), filepath.Join(up, "share/postgresql"), "/usr/share/postgresql/" + v.String()} {
		if there(filepath.Join(dir, "extension/plpgsql.control")) {
			p.Share = dir
			break
		}
	}
	for _, dir := range []string{filepath.Join(up, "lib"), filepath.Join(up, "lib/postgresql")} {
		if there(filepath.Join(dir, "plpgsql.so")) {
			p.Library = dir
			break
		}
	}
	return p
}

// HasExtension says whether the extension can be used: its control file is there. known is false when that could not be found out.
func (p Programs) HasExtension(name string) (has, known bool) {
	if p.Share == "" || !plainName(name) {
		return false, false
	}
	return there(filepath.Join(p.Share, "extension", name+".control")), true
}

// HasLibrary says whether a library of shared_preload_libraries is where a server looks for it that was not told otherwise.
func (p Programs) HasLibrary(name string) (has, known bool) {
	name = strings.TrimSuffix(strings.TrimPrefix(name, "$libdir/"), ".so")
	if p.Library == "" || !plainName(name) {
		return false, false
	}
	return there(filepath.Join(p.Library, name+".so")), true
}

// plainName says whether a name that comes from a backup is one element of a path.
func plainName(name string) bool {
	return name != "" && !strings.ContainsAny(name, "/\x00") && fs.ValidPath(name) && name != "."
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// serverVersion finds the major version in what postgres --version prints: "postgres (PostgreSQL) 15.14 (Debian …)".
func serverVersion(text string) string {
	_, number, _ := strings.Cut(text, "(PostgreSQL) ")
	return number[:len(number)-len(strings.TrimLeft(number, "0123456789"))]
}

// CheckBinDir says why binDir is not the server programs of version v.
func CheckBinDir(ctx context.Context, binDir string, v Version) error {
	if !hasServer(binDir) {
		return fmt.Errorf("%s does not hold postgres and pg_ctl", binDir)
	}
	text := output(ctx, filepath.Join(binDir, "postgres"), "--version")
	if got := serverVersion(text); got != v.String() {
		return fmt.Errorf("%s is not PostgreSQL %s: postgres --version says %q", binDir, v, strings.TrimSpace(text))
	}
	return nil
}
