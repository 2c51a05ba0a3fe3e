package engine

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// firstUserOID is the lowest oid of a database that initdb has not made.
const firstUserOID = 16384

// databaseOID is the database that a file belongs to by its directory (base/<oid>, or <oid> in a tablespace), 0 for none.
func databaseOID(name string) uint32 {
	elems := strings.SplitN(name, "/", 5)
	var oid string
	switch {
	case len(elems) >= 4 && elems[0] == "pg_data" && elems[1] == "base":
		oid = elems[2]
	case len(elems) == 5 && elems[0] == "pg_tblspc":
		oid = elems[3]
	}
	n, err := strconv.ParseUint(oid, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// isEmptied says that a file comes back as nothing but its size.
func (p *RestorePlan) isEmptied(name string) bool {
	return len(p.emptied) > 0 && p.emptied[databaseOID(name)] && path.Base(name) != "PG_VERSION"
}

// chooseDatabases decides which databases come back as empty shells (format page, section 16.5): with an include list all
// user databases that are not in it, and in any case those of the exclude list.
func (p *RestorePlan) chooseDatabases() error {
	if len(p.o.DBInclude) == 0 && len(p.o.DBExclude) == 0 {
		return nil
	}
	known := map[uint32]string{} // what has files here
	for i := range p.m.Files {
		if name := p.m.Files[i].Name; path.Base(name) == "PG_VERSION" {
			if oid := databaseOID(name); oid > 0 {
				known[oid] = ""
			}
		}
	}
	for _, d := range p.m.Databases {
		known[d.OID] = d.Name
	}
	find := func(list []string) (map[uint32]bool, error) {
		found := map[uint32]bool{}
		for _, want := range list {
			oid, ok := uint32(0), false
			if n, err := strconv.ParseUint(want, 10, 32); err == nil {
				_, ok = known[uint32(n)]
				oid = uint32(n)
			}
			for o, name := range known {
				if !ok && name == want && name != "" {
					oid, ok = o, true
				}
			}
			if !ok {
				return nil, fmt.Errorf("%w: %q; it has %s", ErrDBMissing, want, databaseList(known))
			}
			found[oid] = true
		}
		return found, nil
	}
	include, err := find(p.o.DBInclude)
	if err != nil {
		return err
	}
	exclude, err := find(p.o.DBExclude)
	if err != nil {
		return err
	}
	p.emptied = map[uint32]bool{}
	for oid, name := range known {
		system := oid < firstUserOID || name == "postgres" || name == "template0" || name == "template1"
		switch {
		case include[oid] && exclude[oid]:
			return fmt.Errorf("%w: database %s is to be both included and excluded", ErrDBInvalid, databaseName(oid, name))
		case include[oid] && system:
			return fmt.Errorf("%w: database %s belongs to every cluster and is always restored; leave it out of the list", ErrDBInvalid, databaseName(oid, name))
		case exclude[oid], len(include) > 0 && !include[oid] && !system:
			p.emptied[oid] = true
			p.Emptied = append(p.Emptied, databaseName(oid, name))
		}
	}
	slices.Sort(p.Emptied)
	if len(p.Emptied) > 0 {
		p.warnOnce(fmt.Sprintf("databases %s come back as empty shells that can't be used: drop them when recovery has ended", strings.Join(p.Emptied, ", ")))
	}
	return nil
}

func databaseName(oid uint32, name string) string {
	if name == "" {
		return strconv.FormatUint(uint64(oid), 10)
	}
	return name
}

func databaseList(known map[uint32]string) string {
	var names []string
	for oid, name := range known {
		names = append(names, databaseName(oid, name))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// empty makes a file of the original size that takes no space.
func (w *restoreWorker) empty(t restoreTarget) error {
	err := w.write(t, func(out *os.File) error { return out.Truncate(t.Size) })
	w.s.o.Events(Moved{t.Size})
	return err
}
