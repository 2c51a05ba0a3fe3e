package pg

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// defaultCollation is the oid of the collation "default", which stands for the database's own (pg_collation.dat).
const defaultCollation = 100

// StaleCollation is a collation whose order may be another on this machine than where its indexes were built: what it sorted
// then, it may not find now.
type StaleCollation struct {
	Database  string   `json:"database"`
	Collation string   `json:"collation,omitempty"` // with its schema, quoted for SQL; "": the default of the database
	Provider  string   `json:"provider"`            // libc, icu or builtin
	Recorded  string   `json:"recorded"`            // version when it was made or refreshed
	Actual    string   `json:"actual"`              // version here; "": this machine does not have it
	Indexes   []string `json:"indexes"`             // that are sorted by it; with their schema, quoted
	Tables    []string `json:"tables,omitempty"`    // that are partitioned by it: a row may lie in a partition that is not looked into
	More      int      `json:"more,omitempty"`      // indexes and tables beyond these
}

// maxStale bounds the names of one collation.
const maxStale = 10000

// Repair is the statements with which it is put right, in the order in which they are to be run, in its database.
func (s *StaleCollation) Repair() []string {
	var all []string
	for _, i := range s.Indexes {
		all = append(all, "REINDEX INDEX "+i+";")
	}
	if s.Collation == "" {
		return append(all, "ALTER DATABASE "+pgx.Identifier{s.Database}.Sanitize()+" REFRESH COLLATION VERSION;")
	}
	return append(all, "ALTER COLLATION "+s.Collation+" REFRESH VERSION;")
}

// StaleCollations looks through the session's database, l (as Locales gives it): which collations that an index or a partitioned
// table uses have another version on this machine than is recorded. before ("" is unknown) is the version of libc where the
// database was backed up: until 14 PostgreSQL records none for the default collation, and the two machines have to be compared.
func (c *Conn) StaleCollations(ctx context.Context, l Locale, before, here string) ([]StaleCollation, error) {
	stale := map[uint32]*StaleCollation{}
	recorded, actual := l.Version, l.Actual
	if c.version < 15 && l.Provider == "libc" && !PlainLocale(l.Collate) && before != "" && here != "" {
		recorded, actual = before, here
	}
	if recorded != "" && recorded != actual {
		stale[defaultCollation] = &StaleCollation{Database: l.Database, Provider: l.Provider, Recorded: recorded, Actual: actual, Indexes: []string{}}
	}
	var oid uint32
	var name, letter, was, is string
	rows, err := c.c.Query(ctx, usedCollations+`select c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.collname), c.collprovider::text, c.collversion, coalesce(pg_collation_actual_version(c.oid), '')
		from pg_collation c join pg_namespace n on n.oid = c.collnamespace where c.collversion is not null and c.oid in (select coll from used)`)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&oid, &name, &letter, &was, &is}, func() error {
			if was != is {
				stale[oid] = &StaleCollation{Database: l.Database, Collation: name, Provider: provider(letter), Recorded: was, Actual: is, Indexes: []string{}}
			}
			return nil
		})
	}
	if err == nil && len(stale) > 0 {
		err = c.whatUses(ctx, stale)
	}
	if err != nil {
		return nil, fmt.Errorf("database %s: compare the versions of collations: %w", l.Database, err)
	}
	all := []StaleCollation{}
	for _, s := range stale {
		if len(s.Indexes)+len(s.Tables) > 0 { // what nothing is sorted by harms nobody
			all = append(all, *s)
		}
	}
	slices.SortFunc(all, func(a, b StaleCollation) int { return cmp.Compare(a.Collation, b.Collation) })
	return all, nil
}

// PlainLocale says whether libc's locale of that name sorts by bytes or code points, whatever its version.
func PlainLocale(name string) bool {
	return name == "" || name == "C" || name == "POSIX" || strings.HasPrefix(name, "C.")
}

// usedCollations are pairs of a collation and what is sorted by it: indexes by their columns, by what their expressions and
// conditions name, and by the columns that these look at, in which a comparison may be hidden; partitioned tables by their keys.
const usedCollations = `with used as (
	select i.indexrelid as rel, o as coll from pg_index i, unnest(i.indcollation::oid[]) o where o <> 0
	union select i.indexrelid, d.refobjid from pg_index i join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = i.indexrelid and d.refclassid = 'pg_collation'::regclass
	union select i.indexrelid, a.attcollation from pg_index i join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
		and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid join pg_attribute a on a.attrelid = i.indrelid and a.attnum = d.refobjsubid
		where a.attcollation <> 0 and d.refobjsubid > 0 and (i.indpred is not null or i.indexprs is not null)
	union select p.partrelid, o from pg_partitioned_table p, unnest(p.partcollation::oid[]) o where o <> 0) `

// whatUses names what is sorted by the collations.
func (c *Conn) whatUses(ctx context.Context, stale map[uint32]*StaleCollation) error {
	var oids []uint32
	for oid := range stale {
		oids = append(oids, oid)
	}
	rows, err := c.c.Query(ctx, usedCollations+`select used.coll, k.relkind = 'p', quote_ident(n.nspname) || '.' || quote_ident(k.relname)
		from used join pg_class k on k.oid = used.rel join pg_namespace n on n.oid = k.relnamespace
		where used.coll = any($1::oid[]) and k.relkind in ('i', 'p') and k.relpersistence <> 't'
		order by (quote_ident(n.nspname) || '.' || quote_ident(k.relname)) collate "C"`, oids)
	if err != nil {
		return err
	}
	var oid uint32
	var table bool
	var name string
	_, err = pgx.ForEachRow(rows, []any{&oid, &table, &name}, func() error {
		s := stale[oid]
		switch {
		case len(s.Indexes)+len(s.Tables) == maxStale:
			s.More++
		case table:
			s.Tables = append(s.Tables, name)
		default:
			s.Indexes = append(s.Indexes, name)
		}
		return nil
	})
	return err
}
