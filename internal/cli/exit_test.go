package cli

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/eventbus"
	"holdfast/internal/instance"
	"holdfast/internal/kit"
	"holdfast/internal/pg"
	"holdfast/internal/probackup"
	"holdfast/internal/rds"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/internal/storage/s3"
	"holdfast/internal/storage/sftp"
	"holdfast/internal/tarball"
)

// sentinels lists every error that a package below offers to errors.Is or errors.As, by package and name, with the code
// that a command ends with on it.
var sentinels = map[string]struct {
	err  error
	code int
}{
	"action.ErrBusy":              {action.ErrBusy, exitBusy},
	"action.BusyError":            {&action.BusyError{Verb: "restore"}, exitBusy},
	"action.ErrNoStore":           {action.ErrNoStore, exitUsage},
	"action.ErrNoSpace":           {action.ErrNoSpace, exitRefused},
	"action.ErrPreflight":         {action.ErrPreflight, exitFailed},
	"cli.scriptError":             {&scriptError{"x"}, exitScript},
	"action.ErrRestart":           {action.ErrRestart, exitRefused},
	"action.ErrSetStays":          {action.ErrSetStays, exitRefused},
	"catalog.ErrUnknown":          {catalog.ErrUnknown, exitUsage},
	"conf.ErrRefused":             {conf.ErrRefused, exitUsage},
	"conf.RuleError":              {&conf.RuleError{}, exitUsage},
	"conf.UnknownKeyError":        {&conf.UnknownKeyError{}, exitUsage},
	"conf.UsageError":             {&conf.UsageError{}, exitUsage},
	"conf.ValueError":             {&conf.ValueError{}, exitUsage},
	"durable.ErrAborted":          {durable.ErrAborted, exitFailed},
	"durable.ErrLocked":           {durable.ErrLocked, exitBusy},
	"durable.LockedError":         {&durable.LockedError{}, exitBusy},
	"engine.ErrArchiveAlways":     {engine.ErrArchiveAlways, exitFailed},
	"engine.ErrArchiveCommand":    {engine.ErrArchiveCommand, exitFailed},
	"engine.ErrArchiveConflict":   {engine.ErrArchiveConflict, exitFailed},
	"engine.ErrArchiveMismatch":   {engine.ErrArchiveMismatch, exitFailed},
	"engine.ErrArchiveOff":        {engine.ErrArchiveOff, exitFailed},
	"engine.ErrArchiveTimeout":    {engine.ErrArchiveTimeout, exitFailed},
	"engine.ErrCopyConflict":      {engine.ErrCopyConflict, exitRefused},
	"engine.ErrCorrupt":           {engine.ErrCorrupt, exitFailed},
	"engine.ErrLastBackup":        {engine.ErrLastBackup, exitRefused},
	"engine.ErrNoBackup":          {engine.ErrNoBackup, exitFailed},
	"engine.ErrNotClosed":         {engine.ErrNotClosed, exitFailed},
	"engine.ErrPassphrase":        {engine.ErrPassphrase, exitRefused},
	"engine.ErrStanzaMismatch":    {engine.ErrStanzaMismatch, exitFailed},
	"engine.ErrStanzaMissing":     {engine.ErrStanzaMissing, exitFailed},
	"engine.ErrStopped":           {engine.ErrStopped, exitRefused},
	"engine.ErrTarget":            {engine.ErrTarget, exitUsage},
	"engine.ErrTargetNotEmpty":    {engine.ErrTargetNotEmpty, exitRefused},
	"engine.ErrTargetOwner":       {engine.ErrTargetOwner, exitRefused},
	"engine.ErrTargetRunning":     {engine.ErrTargetRunning, exitRefused},
	"engine.ErrDBInvalid":         {engine.ErrDBInvalid, exitUsage},
	"engine.ErrDBMissing":         {engine.ErrDBMissing, exitUsage},
	"engine.ErrLinkInside":        {engine.ErrLinkInside, exitUsage},
	"engine.ErrLinkMap":           {engine.ErrLinkMap, exitUsage},
	"engine.ErrTablespaceMap":     {engine.ErrTablespaceMap, exitUsage},
	"engine.ErrPartly":            {engine.ErrPartly, exitFailed},
	"engine.ErrTimeline":          {engine.ErrTimeline, exitRefused},
	"engine.ErrOtherServer":       {engine.ErrOtherServer, exitFailed},
	"engine.SpoolError":           {&engine.SpoolError{}, exitFailed},
	"engine.ErrWALMissing":        {engine.ErrWALMissing, exitFailed},
	"engine.ErrWALName":           {engine.ErrWALName, exitFailed},
	"eventbus.ErrDamaged":         {eventbus.ErrDamaged, exitFailed},
	"eventbus.ErrMoved":           {eventbus.ErrMoved, exitFailed},
	"instance.ErrNoInstance":      {instance.ErrNoInstance, exitRefused},
	"pg.ErrConnect":               {pg.ErrConnect, exitFailed},
	"pg.ErrNoAnswer":              {pg.ErrNoAnswer, exitFailed},
	"pg.ErrControlChecksum":       {pg.ErrControlChecksum, exitFailed},
	"pg.ErrServerRunning":         {pg.ErrServerRunning, exitFailed},
	"pg.UnsupportedVersionError":  {&pg.UnsupportedVersionError{}, exitFailed},
	"repo.ErrChecksum":            {repo.ErrChecksum, exitFailed},
	"repo.ErrCipher":              {repo.ErrCipher, exitFailed},
	"repo.ErrClock":               {repo.ErrClock, exitFailed},
	"repo.ErrCorrupt":             {repo.ErrCorrupt, exitFailed},
	"repo.ErrFormat":              {repo.ErrFormat, exitFailed},
	"kit.ErrPassphrase":           {kit.ErrPassphrase, exitRefused},
	"kit.ErrIdentity":             {kit.ErrIdentity, exitRefused},
	"kit.ErrWanted":               {kit.ErrWanted, exitUsage},
	"kit.ErrDamaged":              {kit.ErrDamaged, exitFailed},
	"kit.ErrFormat":               {kit.ErrFormat, exitFailed},
	"kit.ErrNotSealed":            {kit.ErrNotSealed, exitFailed},
	"repo.ErrSealed":              {repo.ErrSealed, exitRefused},
	"repo.ErrLocked":              {repo.ErrLocked, exitBusy},
	"repo.ErrTrailingData":        {repo.ErrTrailingData, exitFailed},
	"repo.LockedError":            {&repo.LockedError{}, exitBusy},
	"repo.UnlistedError":          {&repo.UnlistedError{Err: storage.ErrUnavailable}, exitAway},
	"s3.Error":                    {&s3.Error{}, exitAway},
	"action.ErrTool":              {action.ErrTool, exitFailed},
	"probackup.Error":             {&probackup.Error{}, exitFailed},
	"probackup.ErrMissing":        {probackup.ErrMissing, exitFailed},
	"probackup.ErrChain":          {probackup.ErrChain, exitFailed},
	"probackup.ErrNotProbackup":   {probackup.ErrNotProbackup, exitFailed},
	"rds.ErrNotFound":             {rds.ErrNotFound, exitFailed},
	"rds.ErrNotOurs":              {rds.ErrNotOurs, exitFailed},
	"rds.ErrState":                {rds.ErrState, exitFailed},
	"rds.ErrUnavailable":          {rds.ErrUnavailable, exitAway},
	"rds.Error":                   {&rds.Error{Err: rds.ErrUnavailable}, exitAway},
	"sftp.ErrAuth":                {sftp.ErrAuth, exitAway},
	"sftp.ErrHostKey":             {sftp.ErrHostKey, exitAway},
	"storage.ErrUnavailable":      {storage.ErrUnavailable, exitAway},
	"s3.ErrReadOnly":              {s3.ErrReadOnly, exitRefused},
	"storage.ErrChanged":          {storage.ErrChanged, exitFailed},
	"storage.ErrCorrupt":          {storage.ErrCorrupt, exitFailed},
	"storage.ErrEnded":            {storage.ErrEnded, exitFailed},
	"storage.ErrInjected":         {storage.ErrInjected, exitFailed},
	"storage.ErrName":             {storage.ErrName, exitFailed},
	"tarball.ErrDamaged":          {tarball.ErrDamaged, exitFailed},
	"tarball.ErrUnsafe":           {tarball.ErrUnsafe, exitFailed},
	"cli.refusedError":            {&refusedError{"x"}, exitRefused},
	"cli.usageError":              {&usageError{"x"}, exitUsage},
	"cli.warningsError":           {&warningsError{1}, exitWarnings},
	"cli.lacksError":              {&lacksError{1}, exitWarnings},
	"cli.shownError":              {&shownError{engine.ErrNotClosed}, exitFailed},
	"cli.findingsError":           {&findingsError{1}, exitFindings},
	"cli.unavailableError":        {&unavailableError{errors.New("x")}, exitArchive},
	"context.Canceled":            {context.Canceled, exitSignal},
	"context.DeadlineExceeded":    {context.DeadlineExceeded, exitFailed},
	"an error that nobody named":  {errors.New("x"), exitFailed},
	"nothing, which is no error":  {nil, exitOK},
	"unavailable and interrupted": {&unavailableError{context.Canceled}, exitArchive},
}

// unmapped are error types that rootMain answers to before exitCode is asked, or that are never returned by a command.
var unmapped = map[string]string{
	"engine.ErrNoPrior":        "becomes a reason for a full backup",
	"pg.connectError":          "is a pg.ErrConnect",
	"action.preflightError":    "it is an action.ErrPreflight and what its findings were made from",
	"action.toolError":         "it unwraps to the sentinel that its own exit code stands for",
	"backrest.Error":           "under the name pgbackrest the codes are the original's",
	"cli.codeError":            "under the name pgbackrest the codes are the original's",
	"cli.quietExit":            "under the name pgbackrest the codes are the original's",
	"cli.shellExit":            "rootMain returns the shell's own code",
	"rds.credentialsError":     "a mark inside the package, on an error that says what happened",
	"s3.credentialsError":      "a mark inside the package, on an error that says what happened",
	"azure.statusError":        "a mark inside the package, on an error that says what happened",
	"storage.unavailableError": "is a storage.ErrUnavailable",
	"gcs.statusError":          "a mark inside the package, on an error that says what happened",
	"bucket.ErrRange":          "is between an adapter and package bucket",
	"s3.passing":               "a mark inside the package, on an error that says what happened",
	"storage.temporaryError":   "a mark for Retry, on an error that says what happened",
	"tarball.readError":        "a mark inside the package, on an error that says what happened",
	"schedule.ErrYield":        "ends a job of the daemon, no command",
	"runlog.readError":         "a mark inside the package, on an error that says what happened",
	"cli.wantedError":          "ends a job of the daemon that gives way, no command",
	"schedule.warning":         "a job of the daemon gives it to the loop, no command ends with it",
	"schedule.unavailable":     "a job of the daemon gives it to the loop, no command ends with it",
}

func TestExitCodes(t *testing.T) {
	seen := map[int]bool{}
	for name, c := range sentinels {
		seen[c.code] = true
		if got := exitCode(c.err); got != c.code {
			t.Errorf("%s: code %d, want %d", name, got, c.code)
		}
		if c.err == nil {
			continue
		}
		if got := exitCode(fmt.Errorf("stanza main: %w", errors.Join(errors.New("another"), c.err))); got != c.code {
			t.Errorf("%s, wrapped: code %d, want %d", name, got, c.code)
		}
	}
	for i, c := range exitCodes {
		if !seen[c.code] {
			t.Errorf("no error leads to code %d", c.code)
		}
		if i > 0 && exitCodes[i-1].code >= c.code {
			t.Errorf("exitCodes is out of order at %d", c.code)
		}
	}
}

// sources parses the non-test files of one directory.
func sources(t *testing.T, dir string) []*ast.File {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

// errorsOf returns the package-level error values of a file and the types that are errors, as "package.Name".
func errorsOf(f *ast.File) []string {
	var found []string
	add := func(name string) { found = append(found, f.Name.Name+"."+name) }
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.GenDecl:
			for _, s := range d.Specs {
				v, ok := s.(*ast.ValueSpec)
				if !ok || d.Tok != token.VAR {
					continue
				}
				for _, n := range v.Names {
					if strings.HasPrefix(n.Name, "Err") {
						add(n.Name)
					}
				}
			}
			for _, s := range d.Specs {
				if s, ok := s.(*ast.TypeSpec); ok {
					if st, ok := s.Type.(*ast.StructType); ok && slices.ContainsFunc(st.Fields.List, func(f *ast.Field) bool {
						id, ok := f.Type.(*ast.Ident)
						return ok && len(f.Names) == 0 && id.Name == "error"
					}) {
						add(s.Name.Name)
					}
				}
			}
		case *ast.FuncDecl:
			if d.Recv == nil || d.Name.Name != "Error" || len(d.Type.Params.List) > 0 {
				continue
			}
			recv := d.Recv.List[0].Type
			if p, ok := recv.(*ast.StarExpr); ok {
				recv = p.X
			}
			if id, ok := recv.(*ast.Ident); ok {
				add(id.Name)
			}
		}
	}
	return found
}

// TestSentinelsAreComplete looks for errors in the source: one that is added somewhere has to get its code here.
func TestSentinelsAreComplete(t *testing.T) {
	found := map[string]bool{}
	err := filepath.WalkDir("..", func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if strings.HasSuffix(d.Name(), "test") || d.Name() == "testdata" {
			return fs.SkipDir // helpers of tests: no command meets their errors
		}
		for _, f := range sources(t, dir) {
			for _, name := range errorsOf(f) {
				found[name] = true
				if _, ok := sentinels[name]; !ok && unmapped[name] == "" {
					t.Errorf("%s is in neither table of exit_test.go: which exit code does it lead to?", name)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range sentinels {
		if pkg, _, ok := strings.Cut(name, "."); ok && pkg != "context" && !found[name] {
			t.Errorf("%s is not in the source any more", name)
		}
	}
	for name := range unmapped {
		if !found[name] {
			t.Errorf("%s is not in the source any more", name)
		}
	}
}

// TestCodesAreDocumented reads the constants from exit.go, so that a code which is only a constant is found too.
func TestCodesAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/commands.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range sources(t, ".") {
		ast.Inspect(f, func(node ast.Node) bool {
			v, ok := node.(*ast.ValueSpec)
			if !ok || len(v.Values) != 1 || !strings.HasPrefix(v.Names[0].Name, "exit") {
				return true
			}
			lit, ok := v.Values[0].(*ast.BasicLit)
			if !ok || lit.Kind != token.INT {
				return true
			}
			n++
			code, err := strconv.Atoi(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(exitCodes, func(c struct {
				code         int
				short, whole string
			}) bool {
				return c.code == code
			}) {
				t.Errorf("%s = %d is not in exitCodes", v.Names[0].Name, code)
			}
			if !strings.Contains(string(doc), "\n| "+lit.Value+" | ") {
				t.Errorf("%s = %d is not in docs/commands.md; run: go test ./internal/cli -run TestCommandsPage -update", v.Names[0].Name, code)
			}
			return true
		})
	}
	if n != len(exitCodes) {
		t.Errorf("%d constants, %d codes in the table", n, len(exitCodes))
	}
}

// TestExitPrints: what goes where.
func TestExitPrints(t *testing.T) {
	for _, c := range []struct {
		err       error
		json      bool
		out, errs string
	}{
		{nil, false, "", ""},
		{nil, true, "", ""},
		{errors.New("no space on /b"), false, "", "holdfast: no space on /b\n"},
		{errors.New("one\ntwo"), false, "", "holdfast: one\ntwo\n"},
		{errors.New(`a "b"`), true, `{"code":1,"error":"a \"b\""}` + "\n", ""},
		{&usageError{"what?"}, true, `{"code":2,"error":"what?"}` + "\n", ""},
		{context.Canceled, false, "", "holdfast: interrupted: context canceled\n"},
		{&warningsError{2}, false, "", "holdfast: done, with 2 warning(s)\n"},
		{&warningsError{2}, true, "", "holdfast: done, with 2 warning(s)\n"}, // the document with the result is out
		{&findingsError{3}, true, "", "holdfast: 3 finding(s)\n"},
	} {
		env, out, errs := bareEnv(strings.NewReader(""), "holdfast")
		if code := env.exit("holdfast", c.err, c.json); code != exitCode(c.err) || out.String() != c.out || errs.String() != c.errs {
			t.Errorf("%v, JSON %v: code %d\n%s\n%s", c.err, c.json, code, out, errs)
		}
	}
}
