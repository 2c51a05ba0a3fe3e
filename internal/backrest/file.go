package backrest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Where the original looks when nobody says otherwise.
const (
	defaultFile = "/etc/pgbackrest/pgbackrest.conf"
	oldFile     = "/etc/pgbackrest.conf"
	includeDir  = "conf.d"
)

// file is a configuration: sections in any number of parts, in which a name may have several values.
type file struct{ sections []section }

type section struct {
	name    string
	entries []entry
}

type entry struct {
	name   string
	values []string
}

// section is the section of that name; nil: there is none.
func (f *file) section(name string) *section {
	i := slices.IndexFunc(f.sections, func(s section) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return &f.sections[i]
}

// parse adds the text of one file. name is for messages.
func (f *file) parse(name, text string) *Error {
	at := -1 // the section being read
	for n := 1; text != ""; n++ {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		line = strings.TrimSpace(line)
		bad := func(what string) *Error {
			return &Error{CodeFormat, fmt.Sprintf("%s: %s at line %d: %s", name, what, n, line)}
		}
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			if line[len(line)-1] != ']' {
				return bad("section should end with ]")
			}
			title := line[1 : len(line)-1]
			if title == "" {
				return bad("empty section")
			}
			if at = slices.IndexFunc(f.sections, func(s section) bool { return s.name == title }); at < 0 {
				at = len(f.sections)
				f.sections = append(f.sections, section{name: title})
			}
		case at < 0:
			return &Error{CodeFormat, fmt.Sprintf("%s: key/value found outside of section at line %d", name, n)}
		default:
			key, value, ok := strings.Cut(line, "=")
			if key = strings.TrimSpace(key); !ok {
				return &Error{CodeFormat, fmt.Sprintf("%s: missing '=' in key/value at line %d", name, n)} // may be a secret
			} else if key == "" {
				return &Error{CodeFormat, fmt.Sprintf("%s: key is zero-length at line %d", name, n)}
			}
			f.sections[at].add(key, strings.TrimSpace(value))
		}
	}
	return nil
}

func (s *section) add(name, value string) {
	for i := range s.entries {
		if e := &s.entries[i]; e.name == name {
			e.values = append(e.values, value)
			return
		}
	}
	s.entries = append(s.entries, entry{name, []string{value}})
}

// read gets a whole file below the root of files. found is false when it is not there.
func read(files fs.FS, name string) (text string, found bool, err *Error) {
	b, rerr := fs.ReadFile(files, inside(name))
	switch {
	case rerr == nil:
		return string(b), true, nil
	case errors.Is(rerr, fs.ErrNotExist):
		return "", false, &Error{CodeFileMissing, "unable to open missing file '" + name + "' for read"}
	case errors.Is(rerr, fs.ErrPermission):
		return "", false, &Error{CodeFileOpen, "unable to open file '" + name + "' for read: permission denied"}
	}
	return "", false, &Error{CodeFileRead, "unable to read '" + name + "': " + rerr.Error()}
}

// inside is an absolute path as a name below the root of an fs.FS.
func inside(name string) string {
	if name = path.Clean("/" + name)[1:]; name == "" {
		return "."
	}
	return name
}

// load reads the configuration file and the files of the include directory. A name that was given must be there; the
// default places may be empty. With config given alone the include directory is left out.
func (c *Config) load(files fs.FS) (*file, *Error) {
	main, include := defaultFile, path.Join(path.Dir(defaultFile), includeDir)
	given := func(name string) (string, bool) {
		v := c.find(named(name), 1)
		if v == nil || v.negated || v.reset {
			return "", false
		}
		return v.text[0], true
	}
	dir, dirGiven := given("config-path")
	if dirGiven {
		main, include = path.Join(dir, path.Base(defaultFile)), path.Join(dir, includeDir)
	}
	name, mainGiven := given("config")
	if mainGiven {
		main = name
	}
	name, includeGiven := given("config-include-path")
	if includeGiven {
		include = name
	}
	var f file
	if v := c.find(named("config"), 1); v == nil || !v.negated {
		text, found, err := read(files, main)
		if !found && main == defaultFile && !mainGiven && err.Code == CodeFileMissing {
			main = oldFile
			text, found, err = read(files, main)
		}
		if err != nil && (mainGiven || err.Code != CodeFileMissing) {
			return nil, err
		}
		if found {
			if err := f.parse(main, text); err != nil {
				return nil, err
			}
		}
	}
	if mainGiven && !dirGiven && !includeGiven {
		return &f, nil
	}
	return &f, f.include(files, include, includeGiven)
}

// include adds every *.conf of a directory, in the order of their names.
func (f *file) include(files fs.FS, dir string, required bool) *Error {
	list, err := fs.ReadDir(files, inside(dir))
	switch {
	case errors.Is(err, fs.ErrNotExist) && !required:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return &Error{CodePathMissing, "unable to list file info for missing path '" + dir + "'"}
	case err != nil:
		return &Error{CodeFileRead, "unable to list '" + dir + "': " + err.Error()}
	}
	for _, e := range list {
		if base := e.Name(); len(base) > len(".conf") && strings.HasSuffix(base, ".conf") {
			name := path.Join(dir, base)
			text, found, err := read(files, name)
			if !found {
				if err.Code == CodeFileMissing { // gone since the listing
					continue
				}
				return err
			}
			if err := f.parse(name, text); err != nil {
				return err
			}
		}
	}
	return nil
}
