package pg

import (
	"fmt"
	"strconv"
	"strings"
)

// Version is one supported major version of PostgreSQL, 13 to 18.
type Version int

const (
	minVersion Version = 13
	maxVersion Version = 18
)

// versionNumbers is what tells one major version from another in its files.
type versionNumbers struct {
	control uint32 // pg_control_version
	catalog uint32 // catalog_version_no, also in tablespace directory names
	magic   uint16 // WAL page magic
}

// versionTable starts at minVersion (format page, section 1).
var versionTable = [...]versionNumbers{
	{1300, 202007201, 0xD106}, // 13
	{1300, 202107181, 0xD10D}, // 14
	{1300, 202209061, 0xD110}, // 15
	{1300, 202307071, 0xD113}, // 16
	{1700, 202406281, 0xD116}, // 17
	{1800, 202506291, 0xD118}, // 18
}

// unsupported names the neighbours of the supported versions, so that an error can say what was found.
var unsupported = [...]struct {
	name string
	versionNumbers
}{
	{"9.6", versionNumbers{960, 201608131, 0xD093}},
	{"10", versionNumbers{1002, 201707211, 0xD097}},
	{"11", versionNumbers{1100, 201809051, 0xD098}},
	{"12", versionNumbers{1201, 201909212, 0xD101}},
	{"19 beta", versionNumbers{1902, 202605131, 0xD121}},
}

// UnsupportedVersionError says that a cluster, server or segment belongs to a PostgreSQL outside 13 to 18.
type UnsupportedVersionError struct {
	Found string // "PostgreSQL 12", or the numbers found where no version is known by them
}

func (e *UnsupportedVersionError) Error() string {
	return fmt.Sprintf("%s is not supported (supported: PostgreSQL %d to %d)", e.Found, minVersion, maxVersion)
}

// String is the version as it stands in repositories and directory names, "15".
func (v Version) String() string { return strconv.Itoa(int(v)) }

// ParseVersion reads "15". Minor versions ("15.4") are no major version and an error, as are versions outside 13 to 18
// (*UnsupportedVersionError).
func ParseVersion(s string) (Version, error) {
	for v := minVersion; v <= maxVersion; v++ {
		if s == v.String() {
			return v, nil
		}
	}
	for _, u := range unsupported {
		if s == u.name {
			return 0, &UnsupportedVersionError{Found: "PostgreSQL " + s}
		}
	}
	if n, err := strconv.ParseFloat(s, 32); err == nil && n > 0 && !strings.ContainsAny(s, "eExXpP_+") {
		return 0, &UnsupportedVersionError{Found: "PostgreSQL " + s}
	}
	return 0, fmt.Errorf("PostgreSQL version %.40q is no number such as 15", s)
}

// versionOfServer maps server_version_num (150004) to its major version.
func versionOfServer(num int) (Version, error) {
	v := Version(num / 10000)
	if v < minVersion || v > maxVersion {
		name := strconv.Itoa(num / 10000)
		if num < 100000 {
			name = fmt.Sprintf("%d.%d", num/10000, num/100%100)
		}
		return 0, &UnsupportedVersionError{Found: "PostgreSQL " + name}
	}
	return v, nil
}

// versionOfControl finds the version with these numbers of pg_control.
func versionOfControl(control, catalog uint32) (Version, error) {
	for i, n := range versionTable {
		if n.control == control && n.catalog == catalog {
			return minVersion + Version(i), nil
		}
	}
	for _, u := range unsupported {
		if u.control == control && u.catalog == catalog {
			return 0, &UnsupportedVersionError{Found: "PostgreSQL " + u.name}
		}
	}
	return 0, &UnsupportedVersionError{Found: fmt.Sprintf("control version %d with catalog version %d", control, catalog)}
}

// versionOfMagic finds the version whose WAL pages start with magic.
func versionOfMagic(magic uint16) (Version, error) {
	for i, n := range versionTable {
		if n.magic == magic {
			return minVersion + Version(i), nil
		}
	}
	for _, u := range unsupported {
		if u.magic == magic {
			return 0, &UnsupportedVersionError{Found: "WAL of PostgreSQL " + u.name}
		}
	}
	return 0, &UnsupportedVersionError{Found: fmt.Sprintf("WAL magic %04X", magic)}
}

// numbers of a version that is not one of the table are zero.
func (v Version) numbers() versionNumbers {
	if v < minVersion || v > maxVersion {
		return versionNumbers{}
	}
	return versionTable[v-minVersion]
}

// CatalogVersion is catalog_version_no of the released major version, 0 for an unsupported one.
func (v Version) CatalogVersion() uint32 { return v.numbers().catalog }

// ControlVersion is pg_control_version of the major version, 0 for an unsupported one.
func (v Version) ControlVersion() uint32 { return v.numbers().control }

// WALMagic is the magic number of the version's WAL pages, 0 for an unsupported one.
func (v Version) WALMagic() uint16 { return v.numbers().magic }

// TablespaceDirName is the directory that this version uses inside a tablespace, "PG_15_202209061".
func (v Version) TablespaceDirName() string { return v.TablespaceDirOf(v.CatalogVersion()) }

// TablespaceDirOf is that directory for a cluster with the catalog version that its control file tells, which a fork may
// have its own.
func (v Version) TablespaceDirOf(catalog uint32) string {
	return fmt.Sprintf("PG_%d_%d", int(v), catalog)
}
