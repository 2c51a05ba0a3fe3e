package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"holdfast/internal/conf"
)

// confMain is alation_conf, and holdfast conf. asJSON says whether --json was given, also when the rest of the command line
// is wrong: errors are then printed as a document too.
func confMain(ctx context.Context, env *Env, args []string) (asJSON bool, err error) {
	call, err := conf.ParseCall(args)
	if err != nil {
		return slices.Contains(args, "--json"), err
	}
	if call.Op == conf.OpHelp {
		_, err := fmt.Fprint(env.Stdout, conf.CallHelp)
		return call.JSON, err
	}
	entries, err := runCall(ctx, env, call)
	if err != nil {
		return call.JSON, err
	}
	if err := printEntries(env, call, entries); err != nil || call.Op != conf.OpSet {
		return call.JSON, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	if err := checkSet(ctx, env, call.Root, names); err != nil {
		fmt.Fprintf(env.Stderr, "warning: it is set, but can't be used: %v\n", err)
		return call.JSON, &warningsError{1}
	}
	return call.JSON, nil
}

// runCall does what the call asks of the store and returns what is to be printed.
func runCall(ctx context.Context, env *Env, call conf.Call) ([]conf.Entry, error) {
	in, err := openInstance(env, call.Root)
	if err != nil {
		return nil, err
	}
	st, err := store(in)
	if err != nil {
		return nil, err
	}
	switch call.Op {
	case conf.OpList:
		prefix := ""
		if len(call.Names) > 0 {
			prefix = call.Names[0]
		}
		return st.List(prefix)
	case conf.OpSet:
		if err := call.ReadValues(env.stdin(ctx)); err != nil {
			return nil, err
		}
		if err := checkPairs(call.Pairs); err != nil {
			return nil, err
		}
		return st.Set(ctx, call.Pairs)
	case conf.OpUnset:
		return st.Unset(ctx, call.Names)
	}
	e, err := st.Get(call.Names[0])
	return []conf.Entry{e}, err
}

func printEntries(env *Env, call conf.Call, entries []conf.Entry) error {
	if call.JSON {
		var v any = entries
		if call.Op == conf.OpGet {
			v = entries[0]
		}
		return env.printJSON(v)
	}
	changed := call.Op == conf.OpSet || call.Op == conf.OpUnset
	var after []string
	for _, e := range entries {
		if _, err := fmt.Fprintln(env.Stdout, e); err != nil {
			return err
		}
		if e.Problem != "" {
			fmt.Fprintf(env.Stderr, "warning: %s: %s\n", e.Name, e.Problem)
		}
		if changed && e.After != "" && !slices.Contains(after, e.After) {
			after = append(after, e.After)
		}
	}
	for _, a := range after {
		fmt.Fprintf(env.Stderr, "to make it take effect: %s\n", a)
	}
	return nil
}

// printJSON writes one document, indented, on standard output.
func (e *Env) printJSON(v any) error {
	enc := json.NewEncoder(e.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// ofThisHost are parameters that describe a host and not the application: a restore never takes them over.
func ofThisHost(name string) bool {
	switch name {
	case string(conf.KeyRestoreFile), string(conf.KeyEBRestoreFile), string(conf.KeyDataDumpDir), string(conf.KeyDataTempDir), string(conf.KeyClusters),
		string(conf.KeyBusBrokers), string(conf.KeyRepoDir), string(conf.KeyPostScript), string(conf.KeyToolPath), string(conf.KeyCipherPass),
		string(conf.KeyRestoreSource), string(conf.KeyRedundancyPath), string(conf.KeyMetricsListen):
		return true
	}
	return false
}

// importParams takes the parameters of a restored set over, from the two files that travelled in the tarball: those that
// this instance has not set itself and that do not describe a host. Secrets are opened with the set's key and sealed with
// this instance's.
func importParams(ctx context.Context, st *conf.Store, dir string) ([]string, error) {
	from := conf.NewStore(conf.Options{Path: filepath.Join(dir, "conf.json"), KeyPath: filepath.Join(dir, "conf.key")})
	if _, err := os.Stat(filepath.Join(dir, "conf.json")); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	theirs, err := from.Load()
	if err != nil {
		return nil, err
	}
	ours, err := st.Load()
	if err != nil {
		return nil, err
	}
	var pairs []conf.Pair
	var names []string
	for _, k := range conf.Table() {
		if !theirs.IsSet(k.Name) || ours.IsSet(k.Name) || ofThisHost(k.Name) {
			continue
		}
		e, err := theirs.Entry(k.Name)
		if err != nil {
			return nil, err
		}
		value := conf.NewSecret(e.Value)
		if k.Secret() {
			if value, err = theirs.Secret(conf.SecretKey(k.Name)); err != nil {
				return nil, err
			}
		}
		pairs = append(pairs, conf.Pair{Name: k.Name, Value: value})
		names = append(names, k.Name)
	}
	if len(pairs) == 0 {
		return nil, nil
	}
	_, err = st.Set(ctx, pairs)
	return names, err
}

// printCompactJSON writes one document without white space, as pgbackrest's info does.
func (e *Env) printCompactJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = e.Stdout.Write(append(b, '\n'))
	return err
}
