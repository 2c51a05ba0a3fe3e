package pg

import (
	"errors"
	"strings"
	"testing"
)

func TestVersions(t *testing.T) {
	for v := minVersion; v <= maxVersion; v++ {
		if got, err := ParseVersion(v.String()); err != nil || got != v {
			t.Errorf("ParseVersion(%q) = %v, %v", v.String(), got, err)
		}
		if got, err := versionOfControl(v.ControlVersion(), v.CatalogVersion()); err != nil || got != v {
			t.Errorf("version of the control numbers of %v = %v, %v", v, got, err)
		}
		if got, err := versionOfMagic(v.WALMagic()); err != nil || got != v {
			t.Errorf("version of the WAL magic of %v = %v, %v", v, got, err)
		}
		if got, err := versionOfServer(int(v)*10000 + 7); err != nil || got != v {
			t.Errorf("version of server_version_num of %v = %v, %v", v, got, err)
		}
	}
	if got := Version(15).TablespaceDirName(); got != "PG_15_202209061" {
		t.Errorf("TablespaceDirName() = %s", got)
	}
	if Version(12).CatalogVersion() != 0 || Version(19).WALMagic() != 0 {
		t.Error("an unsupported version has numbers")
	}
}

func TestUnsupportedVersionsAreNamed(t *testing.T) {
	_, parsed := ParseVersion("9.6")
	_, future := ParseVersion("21")
	_, control := versionOfControl(1201, 201909212)
	_, unknown := versionOfControl(1300, 1)
	_, magic := versionOfMagic(0xD121)
	_, server := versionOfServer(120004)
	_, oldServer := versionOfServer(90624)
	for err, want := range map[error]string{
		parsed: "PostgreSQL 9.6", future: "PostgreSQL 21", control: "PostgreSQL 12", unknown: "catalog version 1",
		magic: "PostgreSQL 19", server: "PostgreSQL 12", oldServer: "PostgreSQL 9.6",
	} {
		var unsupported *UnsupportedVersionError
		if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "13 to 18") {
			t.Errorf("error %q does not name %s and 13 to 18", err, want)
		}
	}
	for _, text := range []string{"", "x", "-15", "015x", "1e1", "inf", "nan"} {
		if v, err := ParseVersion(text); err == nil {
			t.Errorf("ParseVersion(%q) = %v", text, v)
		}
	}
}
