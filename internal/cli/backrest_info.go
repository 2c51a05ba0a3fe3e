package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

// info prints what the repositories hold. One that can't be read is a line of the output and keeps no other from its turn.
func (r *backrestRun) info(ctx context.Context) error {
	set := repo.Label(r.c.String("set", 0)) // one that is no label is not found, which is an answer too
	list, err := r.infoStanzas(ctx)
	if err != nil {
		return err
	}
	stanzas := []*engine.StanzaInfo{}
	for _, l := range list {
		one, err := engine.InfoAcross(ctx, l.name, l.in, set)
		if err != nil {
			return err
		}
		if typ := r.c.String("type", 0); typ != "" {
			one.Backup = slices.DeleteFunc(one.Backup, func(b engine.BackupInfo) bool { return b.Type != typ })
		}
		stanzas = append(stanzas, one)
	}
	switch {
	case r.c.String("detail-level", 0) == "progress":
		return r.infoProgress(stanzas)
	case r.c.String("output", 0) == "json":
		return r.env.printCompactJSON(stanzas)
	}
	return engine.WriteInfo(r.env.Stdout, stanzas, time.Local)
}

// infoStanza is a stanza and the repositories that it is looked for in.
type infoStanza struct {
	name string
	in   []engine.InfoRepository
}

// infoStanzas lists the stanza of the command or, without one, those of every repository that can be listed.
func (r *backrestRun) infoStanzas(ctx context.Context) ([]infoStanza, error) {
	keys := repoKeys(r.c)
	var names []string
	failed := map[int]error{}
	if name := r.c.String("stanza", 0); name != "" {
		names = []string{name}
	} else {
		for _, key := range keys {
			st, err := r.storage(key)
			var here []string
			if err == nil {
				here, err = engine.Stanzas(ctx, st)
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				failed[key] = err
			}
			names = append(names, here...)
		}
		slices.Sort(names)
		if names = slices.Compact(names); len(names) == 0 && len(failed) > 0 {
			names = []string{engine.InvalidStanza}
		}
	}
	var list []infoStanza
	for _, name := range names {
		l := infoStanza{name: name}
		for _, key := range keys {
			one := engine.InfoRepository{Key: key, Cipher: r.c.String("repo-cipher-type", key), Err: failed[key]}
			if one.Err == nil && name != engine.InvalidStanza {
				one.Stanza, one.Err = r.stanza(name, key)
			}
			l.in = append(l.in, one)
		}
		list = append(list, l)
	}
	return list, nil
}

// infoProgress prints names and states only.
func (r *backrestRun) infoProgress(stanzas []*engine.StanzaInfo) error {
	if r.c.String("output", 0) == "text" {
		for _, s := range stanzas {
			if _, err := fmt.Fprintf(r.env.Stdout, "stanza: %s\n    status: %s\n", s.Name, s.Status.Message); err != nil {
				return err
			}
		}
		return nil
	}
	type short struct {
		Name   string            `json:"name"`
		Status engine.InfoStatus `json:"status"`
	}
	out := []short{}
	for _, s := range stanzas {
		out = append(out, short{s.Name, s.Status})
	}
	return r.env.printCompactJSON(out)
}
