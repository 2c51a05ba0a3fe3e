package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"holdfast/internal/action"
	"holdfast/internal/engine"
	"holdfast/internal/kit"
)

// recoverFlags are those of holdfast recover.
type recoverFlags struct {
	actionFlags
	kit, identity, passFile string
	dataDisk, backupDisk    string
	set, asOf, state, user  string
	conf                    []string
	list                    bool
}

func (r *root) recoverCommand() *cobra.Command {
	var f recoverFlags
	c := &cobra.Command{Use: "recover --kit FILE DATA_DISK BACKUP_DISK", Short: "bring a whole application back on a bare machine, with its recovery kit",
		Long: `Opens a recovery kit, shows which set of the external storage would be brought back, asks, and does it all: lays the instance
out, sets its parameters and keys, fetches the set's tarballs and restores everything, PostgreSQL from the external storage.
The places have to be empty. Interrupted, the same command goes on.

The kit asks for its passphrase, or for the identity (secret key) that belongs to its recipient. PostgreSQL and the event bus's
brokers have to be there; --conf says what is otherwise here than it was.`,
		Args: func(_ *cobra.Command, args []string) error {
			if f.kit == "" {
				return &usageError{"--kit is missing: the file ..._recovery_kit.age"}
			}
			if len(args) != 2 && (!f.list || len(args) != 0) {
				return &usageError{"holdfast recover needs DATA_DISK and BACKUP_DISK; see: holdfast recover --help"}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			f.actionFlags = r.f
			if len(args) == 2 {
				f.dataDisk, f.backupDisk = args[0], args[1]
			}
			return recoverAll(cmd.Context(), r.env, &f)
		}}
	fl := c.Flags()
	fl.StringVar(&f.kit, "kit", "", "the recovery kit")
	fl.StringVar(&f.identity, "identity", "", "file with the age identity that the kit is encrypted to")
	fl.StringVar(&f.passFile, "passphrase-file", "", "file with the kit's passphrase, - for the first line of standard input (else: asked for on the terminal)")
	fl.StringVar(&f.set, "set", "", "the set's ID, or latest: the newest that is there whole (default: latest)")
	fl.StringVar(&f.asOf, "as-of", "", asOfHelp)
	fl.StringVar(&f.state, "state", "", "with the host's own paths: directory of Holdfast's own files")
	fl.StringVar(&f.user, "user", "", "the instance's user (default: as in the kit, if there is one of that name)")
	fl.StringArrayVar(&f.conf, "conf", nil, "KEY=VALUE: a parameter that is otherwise here than the kit says; may be repeated")
	fl.BoolVar(&f.list, "list", false, "list the sets in the external storage and do nothing")
	fl.BoolVar(&r.f.dryRun, "dry-run", false, "show the plan, change nothing")
	fl.BoolVar(&r.f.yes, "yes", false, "do not ask")
	return c
}

// recoverAll is holdfast recover.
func recoverAll(ctx context.Context, env *Env, f *recoverFlags) error {
	l := newListener(env, f.json, nil)
	r, err := openRecovery(ctx, env, l, f)
	if err != nil {
		return err
	}
	defer r.close()
	if f.list {
		return r.list(ctx)
	}
	if err := r.planRecovery(ctx); err != nil {
		return err
	}
	l.done()
	switch {
	case f.json && f.dryRun:
		err = env.printJSON(&r.plan)
	case !f.json:
		err = env.printRecoverPlan(&r.plan)
	case !f.yes: // it is about to be asked about
		err = env.onStderr().printRecoverPlan(&r.plan)
	}
	if err == nil {
		if err = r.plan.refuse(); f.json && f.dryRun {
			err = shown(nil, err)
		}
	}
	if err != nil || f.dryRun {
		return err
	}
	if !f.yes {
		if err := env.confirm(ctx, "This makes the instance and restores the set. Type YES to go on", "YES"); err != nil {
			return err
		}
	}
	res, err := r.run(ctx)
	warnings := len(l.done())
	if err != nil {
		return fmt.Errorf("recover set %s: %w", r.plan.Set.ID, err)
	}
	if res == nil { // an earlier call restored it
		res = &action.RestoreResult{Set: r.plan.Set.ID}
		_, err = fmt.Fprintf(env.Stderr, "set %s was restored before; what was left of the recovery is done\n", res.Set)
	}
	if err == nil && f.json {
		err = env.printJSON(res)
	} else if err == nil && !res.Interval.To.IsZero() {
		err = env.printRestored(res)
	}
	if warnings += len(res.Warnings); err == nil && warnings > 0 {
		err = &warningsError{warnings}
	}
	return err
}

// list shows what is in the external storage.
func (r *recovery) list(ctx context.Context) error {
	if err := r.sets(ctx); err != nil {
		return err
	}
	r.l.done()
	if r.f.json {
		return r.env.printJSON(r.plan.Sets)
	}
	rows := [][]string{{"SET", "POSTGRESQL", "SIZE", "RECOVERY POINT", "THERE"}}
	for _, s := range r.plan.Sets {
		there, point := "whole", "-"
		if len(s.Lacks) > 0 {
			there = "lacks " + strings.Join(s.Lacks, ", ")
		}
		if s.Recovery != nil {
			point = s.Recovery.Skew.From.Format("2006-01-02 15:04:05 MST")
		}
		rows = append(rows, []string{s.ID, string(s.Mode), engine.Size(s.Size()), point, there})
	}
	for _, n := range r.plan.Notes {
		fmt.Fprintf(r.env.Stderr, "warning: %s\n", n)
	}
	_, err := fmt.Fprintf(r.env.Stdout, "sets on %s:\n%s", r.plan.Store, table(rows))
	return err
}

// openKit reads and decrypts the kit.
func openKit(ctx context.Context, env *Env, f *recoverFlags) (*kit.Kit, error) {
	if f.identity != "" && f.passFile != "" {
		return nil, &usageError{"--identity and --passphrase-file exclude each other: a kit is encrypted in one of the two ways"}
	}
	sealed, err := readBounded(f.kit, kit.MaxSealed)
	if err != nil {
		return nil, fmt.Errorf("recovery kit: %w", err)
	}
	wants, err := kit.WantsPassphrase(sealed)
	if err != nil {
		return nil, fmt.Errorf("recovery kit %s: %w", f.kit, err)
	}
	var u kit.Unlock
	switch {
	case f.identity != "":
		u.Identities, err = secretFile("identity", f.identity)
	case f.passFile == "-":
		var line string
		line, err = readLineOf(env.stdin(ctx))
		u.Passphrase = kit.Secret(line)
	case f.passFile != "":
		u.Passphrase, err = secretFile("passphrase", f.passFile)
		u.Passphrase = kit.Secret(strings.TrimRight(string(u.Passphrase), "\r\n"))
	case wants:
		u.Passphrase, err = askPassphrase(ctx, env, f.kit)
	}
	if err != nil {
		return nil, err
	}
	k, err := kit.Open(sealed, u)
	hint := ""
	switch {
	case errors.Is(err, kit.ErrWanted) && wants:
		hint = ": leave --identity out, or name --passphrase-file FILE"
	case errors.Is(err, kit.ErrWanted):
		hint = ": name --identity FILE, the secret key that belongs to the recipient"
	case errors.Is(err, kit.ErrDamaged):
		hint = "; take the kit of another run, or its copy beside the tarballs on external storage"
	}
	if err != nil {
		return nil, fmt.Errorf("recovery kit %s: %w%s", f.kit, err, hint)
	}
	return k, nil
}

// secretFile reads a file that nobody else may read.
func secretFile(what, path string) (kit.Secret, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%s of the recovery kit: %w", what, err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("%s of the recovery kit: every user can read %s; run: chmod o= %[2]s", what, path)
	}
	b, err := readBounded(path, 1<<20)
	return kit.Secret(b), err
}

// readBounded reads a whole file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // opened for reading: nothing to lose
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes: it is something else", path, limit)
	}
	return b, err
}

// readLineOf reads one line, byte by byte: what follows it is for somebody else.
func readLineOf(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < maxAnswer; {
		n, err := r.Read(b)
		if n == 1 && b[0] == '\n' || errors.Is(err, io.EOF) && len(line) > 0 {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		if err != nil {
			return "", fmt.Errorf("passphrase of the recovery kit, from standard input: %w", err)
		}
		line = append(line, b[:n]...)
	}
	return "", errors.New("passphrase of the recovery kit: the line is too long")
}

// askPassphrase asks on the terminal, which does not show what is typed.
func askPassphrase(ctx context.Context, env *Env, name string) (kit.Secret, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil || !env.StdinTerminal {
		if err == nil {
			tty.Close() // nothing was written
		}
		return "", &usageError{fmt.Sprintf("%s is encrypted with a passphrase and there is no terminal to ask on: name --passphrase-file FILE (- for standard input)", name)}
	}
	defer tty.Close() // what was asked has been answered
	was, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		return "", err
	}
	quiet := *was
	quiet.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, &quiet); err != nil {
		return "", err
	}
	defer func() { _ = unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, was) }() // there is no more to be done
	if _, err := fmt.Fprintf(tty, "Passphrase of %s: ", name); err != nil {
		return "", err
	}
	line, err := readLineOf(&cancelReader{ctx: ctx, r: tty})
	fmt.Fprintln(tty)
	return kit.Secret(line), err
}

func (e *Env) printRecoverPlan(r *recoverPlan) error {
	var p page
	p.f("recovery kit %s, made %s on %s by %s\n", r.Kit.File, r.Kit.Made, r.Kit.Host, r.Kit.Program)
	p.f("external storage: %s, %d set(s), the newest %s\n", r.Store, len(r.Sets), r.Sets[len(r.Sets)-1].ID)
	p.f("set: %s, %s", r.Set.ID, engine.Size(r.Set.Size()))
	if r.Set.Recovery != nil {
		p.f(", recovery point %s", r.Set.Recovery.Skew.From.Format(time.RFC3339))
		p.rdsPoints(r.Set.Set)
		for _, c := range r.Set.Local() {
			p.f("\n  postgres  %s: PostgreSQL %s, system identifier %d, backup %s, %s", c.Stanza, c.Version, c.SystemID, c.Label, engine.Size(c.Bytes))
		}
	}
	p.f("\nmakes an instance: root %s, data disk %s, backup disk %s", r.Root, r.DataDisk, r.BackupDisk)
	if r.State != "" {
		p.f(", Holdfast's own files in %s", r.State)
	}
	if r.User != "" {
		p.f(", user %s", r.User)
	}
	p.f("\nsets %d parameters as in the kit", len(r.Parameters))
	if len(r.Files) > 0 {
		p.f(" and lays %d file(s) out: %s", len(r.Files), strings.Join(r.Files, ", "))
	}
	p.f("\n")
	if r.Continues {
		p.f("goes on with an interrupted recovery\n")
	}
	for _, n := range r.Notes {
		p.f("note: %s\n", n)
	}
	for _, m := range r.Missing {
		p.f("missing or wrong: %s\n", m)
	}
	return p.to(e.Stdout)
}
