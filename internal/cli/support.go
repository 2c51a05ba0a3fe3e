package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/instance"
	"holdfast/internal/runlog"
	"holdfast/internal/scrub"
)

// support collects a support bundle. Nothing that can't be read stops it.
type support struct {
	r      *root
	now    time.Time
	in     *instance.Instance
	store  *conf.Store
	values *conf.Values // nil: they can't be read
	w      *wired       // nil: the application can't be opened
	scrub  *scrub.Scrubber

	items []supportItem
	notes []string // what could not be read
	blind []string // secrets that could not be
}

// newSupport opens what can be opened and says what will go in.
func newSupport(r *root, days int) (*support, error) {
	in, err := openInstance(r.env, r.f.root)
	if err != nil {
		return nil, err
	}
	s := &support{r: r, now: r.env.Now(), in: in}
	if s.store, err = store(in); err != nil {
		return nil, err
	}
	if s.values, err = s.store.Load(); err != nil {
		s.note("parameters", err)
	}
	l := newListener(r.env, false, nil)
	l.quiet = true
	if s.w, err = openApp(r.env, in.Dir(), l); err != nil {
		s.w = nil
		s.note("the application", err)
	}
	s.scrub = scrub.New(s.secrets())
	for i, n := range s.notes { // of before there was a scrubber
		s.notes[i] = s.scrub.Text(n)
	}
	s.items = []supportItem{
		{Name: "versions.json", About: "versions of Holdfast, of Go, and of the tools it was told of", document: s.versions},
		{Name: "host.json", About: "operating system, memory, processors, zone", document: s.host},
		{Name: "instance.json", About: "root, disks, user, whether the disks are attached", document: s.instance},
		{Name: "parameters.json", About: "every parameter; of a secret, whether it is set", document: s.parameters},
		{Name: "catalogue.json", About: "the newest backup sets: pieces, recovery points, verdicts", document: s.catalogue},
		{Name: "schedule.json", About: "times, last and next runs, the daemon, what is wrong", document: s.schedule},
		{Name: "schedule-state.json", About: "what the daemon remembers", document: s.scheduleState},
		{Name: "locks.json", About: "who holds what of the instance", document: s.locks},
		{Name: "disks.json", About: "free space where backups, PostgreSQL and files are", document: s.disks},
		{Name: "repositories.json", About: "info of the repository here and on external storage", document: s.repositories},
		{Name: "postgresql.json", About: "settings and state of archiving, and what waits in pg_wal", document: s.postgresql},
		{Name: "spool.json", About: "an external tool's spool: what waits, and its errors", document: s.spool},
		{Name: "service.json", About: "the daemon's unit, lines of cron that back this instance up", document: s.service},
	}
	if s.hasDoctor() {
		s.items = append(s.items, supportItem{Name: "doctor.json", About: "what holdfast doctor finds", document: s.doctor})
	}
	s.logs(days)
	return s, nil
}

// note says that something could not be read. What it says goes through the scrubber at once: notes are also printed.
func (s *support) note(what string, err error) {
	text := what + ": " + strings.ReplaceAll(err.Error(), "\n", "; ")
	if s.scrub != nil {
		text = s.scrub.Text(text)
	}
	s.notes = append(s.notes, text)
}

// secrets are the values that must not be in the bundle: those of the parameter store, of the files that hold one, and of the
// environment.
func (s *support) secrets() []string {
	var all []string
	blind := func(what string, err error) {
		s.blind = append(s.blind, what+": "+strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	secrets, err := s.store.Secrets()
	if err != nil {
		blind("the parameter store", err)
	}
	for _, secret := range secrets {
		all = append(all, secret.Reveal())
	}
	files := []string{s.in.KeyPath(), filepath.Join(s.in.ArchiverDir(), "cipher_pass")}
	if s.values != nil {
		for _, key := range []conf.PathKey{conf.KeyGCSKeyFile, conf.KeySFTPPrivateKey} {
			if p := s.values.Path(key); p != "" {
				files = append(files, s.in.Resolve(p))
			}
		}
	}
	for _, name := range files {
		b, err := instance.ReadSmall(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			blind(name, err)
			continue
		}
		all = append(all, string(b))
		all = append(all, jsonTexts(b)...)
	}
	for _, e := range s.r.env.Environ() {
		if name, value, found := strings.Cut(e, "="); found && secretVariable().MatchString(name) {
			all = append(all, value)
		}
	}
	return all
}

// secretVariable matches the names of environment variables that hold a secret.
var secretVariable = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)(PASS(WORD|PHRASE|WD)?|SECRET(_ACCESS_KEY)?|TOKEN|ACCESS_KEY(_ID)?|_KEY|_PWD|_SAS)$`)
})

// jsonTexts are the texts of a service account's file that are secrets.
func jsonTexts(b []byte) []string {
	var account map[string]any
	if json.Unmarshal(b, &account) != nil {
		return nil
	}
	var all []string
	for _, name := range []string{"private_key", "private_key_id", "client_secret", "refresh_token"} {
		if text, ok := account[name].(string); ok {
			all = append(all, text)
		}
	}
	return all
}

// logs adds the logs of the last days: of runs, of the PostgreSQL side, and what a daemon said last on standard error.
func (s *support) logs(days int) {
	paths := []string{logPath(s.in.LogDir())}
	if s.w != nil {
		for _, l := range s.w.pgLogs {
			paths = append(paths, l.path)
		}
	}
	since := s.now.UTC().AddDate(0, 0, -days)
	for n, path := range paths {
		prefix := "logs/"
		if n > 0 {
			prefix = fmt.Sprintf("logs/postgresql-%s/", filepath.Base(filepath.Dir(path)))
		}
		rotated, err := runlog.RotatedOf(path)
		if err != nil {
			s.note(path, err)
		}
		for _, r := range rotated {
			if r.Day.Add(24 * time.Hour).Before(since) {
				continue
			}
			name := prefix + strings.TrimSuffix(strings.TrimSuffix(filepath.Base(r.Path), ".gz"), ".bz2")
			s.items = append(s.items, supportItem{Name: name, About: "from " + r.Path, lines: func(context.Context) (io.ReadCloser, error) { return newest(r.Open, supportLogMax) }})
		}
		s.items = append(s.items, s.text(prefix+filepath.Base(path), path))
	}
	s.items = append(s.items, s.text("logs/daemon.err", daemonErrors(s.in)))
}

// text is a file that is read as it is.
func (s *support) text(name, path string) supportItem {
	return supportItem{Name: name, About: "from " + path, lines: func(context.Context) (io.ReadCloser, error) {
		in, err := newest(func() (io.ReadCloser, error) { return runlog.OpenRegular(path) }, supportLogMax)
		if errors.Is(err, fs.ErrNotExist) {
			return io.NopCloser(bytes.NewReader(nil)), nil
		}
		return in, err
	}}
}

// readme is what the bundle says about itself.
func (s *support) readme(done []supportDone) string {
	var p page
	p.f("Support bundle of the Holdfast instance %s, made at %s by %s.\n\n", s.in.Dir(), s.now.UTC().Format(time.RFC3339), programVersion())
	p.f("Secrets were taken out; %s stands where one was. Names of hosts, paths, databases and topics are in it.\n\nFiles:\n", scrub.Mark)
	about := map[string]string{}
	for _, i := range s.items {
		about[i.Name] = i.About
	}
	for _, d := range done {
		p.f("  %-32s %s\n", d.Name, about[d.Name])
	}
	if len(s.notes) > 0 {
		p.f("\nWhat could not be read:\n")
	}
	for _, n := range s.notes {
		p.f("  %s\n", n)
	}
	if len(s.blind) > 0 {
		p.f("\nSecrets that could not be read, and were taken out only where they look like one:\n")
	}
	for _, n := range s.blind {
		p.f("  %s\n", n)
	}
	return p.String()
}

// supportSets is how many sets of the catalogue go in.
const supportSets = 200

func (s *support) catalogue(ctx context.Context) (any, error) {
	st, err := openPosix(s.in.CatalogDir(), nil)
	if err != nil {
		return nil, err
	}
	sets, damaged, err := catalog.NewStore(st).List(ctx)
	if err != nil {
		return nil, err
	}
	all := len(sets)
	if all > supportSets {
		sets = sets[all-supportSets:]
	}
	texts := []string{}
	for _, d := range damaged {
		texts = append(texts, d.Error())
	}
	return map[string]any{"sets_in_all": all, "sets": sets, "damaged": texts}, nil
}

func (s *support) parameters(context.Context) (any, error) {
	entries, err := s.store.List("")
	if err != nil {
		return nil, err
	}
	doc := map[string]any{"parameters": entries}
	if s.values != nil {
		problems := []string{}
		for _, p := range s.values.Problems() {
			problems = append(problems, p.Error())
		}
		doc["problems"], doc["of_a_newer_version"] = problems, s.values.Unknown()
	}
	return doc, nil
}

func (s *support) instance(context.Context) (any, error) {
	data, backup := s.in.Disks()
	doc := map[string]any{"directory": s.in.Dir(), "root": s.in.Root(), "host_paths": s.in.HostPaths(), "id": s.in.ID(), "user": s.in.User(), "data_disk": data, "backup_disk": backup}
	if err := s.in.Ready(); err != nil {
		doc["not_ready"] = err.Error()
	}
	version, err := s.in.Version()
	doc["application_version"] = version
	return doc, err
}

func (s *support) schedule(ctx context.Context) (any, error) {
	v, err := s.r.view(ctx)
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (s *support) scheduleState(context.Context) (any, error) {
	f, err := newStateFile(s.in)
	if err != nil {
		return nil, err
	}
	state, err := f.Load()
	if err != nil {
		return nil, err
	}
	return state, nil
}

// locks shows what lock files say. The locks are not touched.
func (s *support) locks(context.Context) (any, error) {
	entries, err := os.ReadDir(s.in.LockDir())
	if err != nil {
		return nil, err
	}
	doc := map[string]string{}
	var all []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".lock") && e.Name() != "restore.json" {
			continue
		}
		b, err := instance.ReadSmall(filepath.Join(s.in.LockDir(), e.Name()))
		all = append(all, err)
		doc[e.Name()] = string(b)
	}
	return doc, errors.Join(all...)
}

func (s *support) repositories(ctx context.Context) (any, error) {
	if s.w == nil {
		return nil, nil // noted already
	}
	return s.w.app.ReportRepositories(ctx), ctx.Err()
}

func (s *support) postgresql(ctx context.Context) (any, error) {
	if s.w == nil {
		return nil, nil // noted already
	}
	return s.w.app.ReportServers(ctx), ctx.Err()
}

// hasDoctor reports whether this version has the command holdfast doctor.
func (s *support) hasDoctor() bool {
	c, _, err := (&root{env: s.r.env}).command().Find([]string{"doctor"}) // a tree of its own: making one sets its flags
	return err == nil && c.Name() == "doctor"
}

// doctor runs it.
func (s *support) doctor(ctx context.Context) (any, error) {
	env := *s.r.env
	var out, errs bytes.Buffer
	env.Args, env.Stdout, env.Stderr, env.Terminal = []string{"holdfast", "doctor", "--json", "--root", s.in.Dir()}, &out, &errs, false
	code := Main(ctx, &env)
	var findings any
	if err := json.Unmarshal(out.Bytes(), &findings); err != nil {
		return nil, fmt.Errorf("doctor ended with %d: %s", code, strings.TrimSpace(errs.String()))
	}
	return map[string]any{"exit_code": code, "findings": findings}, nil
}
