package pg

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// realControl is the control file of a real cluster of version v; server_test.go writes them with -update.
func realControl(t testing.TB, v Version) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "control-"+v.String()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseControl(t *testing.T) {
	for v := minVersion; v <= maxVersion; v++ {
		c, err := ParseControl(realControl(t, v))
		if err != nil {
			t.Errorf("control file of %v: %v", v, err)
			continue
		}
		if c.Version != v || c.PageSize != 8192 || c.WALSegmentSize != 1<<20 || c.DataChecksumVersion != 1 ||
			c.State != StateInProduction || c.CheckpointTimeline != 1 || c.Checkpoint < 1<<20 || c.Invalidated() {
			t.Errorf("control file of %v: %+v", v, c)
		}
	}
}

func TestParseControlRefuses(t *testing.T) {
	good := realControl(t, 15)
	// damaged changes 15's file and makes its CRC right again.
	damaged := func(offset int, value uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[offset:], value)
		binary.LittleEndian.PutUint32(b[controlCRCOffset(15):], controlCRC(b[:controlCRCOffset(15)]))
		return b
	}
	for name, b := range map[string][]byte{
		"empty": nil, "short": good[:511], "page size": damaged(controlPageSize, 8191), "page size 64 KiB": damaged(controlPageSize, 1<<16),
		"segment size": damaged(controlWALSegSize, 0), "segment size 2 GiB": damaged(controlWALSegSize, 1<<31), "WAL page size": damaged(controlWALPageSize, 3),
	} {
		if c, err := ParseControl(b); err == nil || errors.Is(err, ErrControlChecksum) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	flipped := bytes.Clone(good)
	flipped[controlCheckpoint] ^= 1
	if _, err := ParseControl(flipped); !errors.Is(err, ErrControlChecksum) {
		t.Errorf("flipped bit: %v", err)
	}
	var unsupported *UnsupportedVersionError
	if _, err := ParseControl(damaged(controlCatalog, 202209060)); !errors.As(err, &unsupported) {
		t.Errorf("beta catalog: %v", err)
	}
}

func TestReadControlAgainWhileTorn(t *testing.T) {
	good := realControl(t, 18)
	torn := append(bytes.Clone(good[:100]), make([]byte, 412)...)
	torn = append(torn[:controlPageSize], good[controlPageSize:]...)
	reads := 0
	read := func(string, int) ([]byte, error) {
		reads++
		if reads < 3 {
			return bytes.Clone(torn), nil
		}
		return bytes.Clone(good), nil
	}
	c, b, err := readControl(t.Context(), "pg_control", 0, 5, read)
	if err != nil || c.Version != 18 || reads != 3 {
		t.Errorf("%+v, %v after %d reads", c, err, reads)
	}
	if len(b) != ControlFileSize || !bytes.Equal(b[:512], good) || !allZero(b[512:]) {
		t.Error("the returned file is not the significant bytes padded with zeros")
	}
	always := func(string, int) ([]byte, error) { return torn, nil }
	if _, _, err := readControl(t.Context(), "pg_control", 0, 3, always); !errors.Is(err, ErrControlChecksum) {
		t.Errorf("a file that stays torn: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := readControl(ctx, "pg_control", 0, 1000000, always); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, _, err := ReadControl(t.Context(), t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestInvalidateCheckpoint(t *testing.T) {
	for v := minVersion; v <= maxVersion; v++ {
		b := append(realControl(t, v), make([]byte, ControlFileSize-512)...)
		before, err := ParseControl(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := InvalidateCheckpoint(b, 0); err != nil {
			t.Fatal(err)
		}
		after, err := ParseControl(b)
		if err != nil || after.Checkpoint != 0xDEAD || !after.Invalidated() {
			t.Errorf("%v: %+v, %v", v, after, err)
		}
		after.Checkpoint = before.Checkpoint
		if after != before {
			t.Errorf("%v: more than the checkpoint changed: %+v, %+v", v, before, after)
		}
	}
	b := realControl(t, 15)
	b[300] ^= 1 // outside the checksum
	b[20] ^= 1
	unchanged := bytes.Clone(b)
	if err := InvalidateCheckpoint(b, 0); err == nil || !bytes.Equal(b, unchanged) {
		t.Errorf("a damaged file was made valid (%v)", err)
	}
}

func FuzzControl(f *testing.F) {
	for v := minVersion; v <= maxVersion; v++ {
		f.Add(realControl(f, v))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		// With the right checksum the fuzzer gets past the first test.
		if len(b) >= controlSignificant {
			if v, err := versionOfControl(binary.LittleEndian.Uint32(b[controlVersion:]), binary.LittleEndian.Uint32(b[controlCatalog:])); err == nil {
				crc := controlCRCOffset(v)
				binary.LittleEndian.PutUint32(b[crc:], controlCRC(b[:crc]))
			}
		}
		c, err := ParseControl(b)
		if err != nil {
			return
		}
		if !ValidSegmentSize(c.WALSegmentSize) || NewPageChecker(c.PageSize, 0, nil) == nil {
			t.Fatalf("%+v", c)
		}
		if err := InvalidateCheckpoint(b, 0); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSecretDoesNotPrint(t *testing.T) {
	s := Secret("hunter2")
	o := ConnOptions{Password: s}
	text := fmt.Sprintf("%v %s %q %x %#v %+v %#v %d", s, s, s, s, s, o, o, s)
	if encoded, err := s.MarshalJSON(); err != nil || string(encoded) != `"******"` {
		t.Errorf("JSON: %s, %v", encoded, err)
	}
	if encoded, err := s.MarshalText(); err != nil || string(encoded) != "******" {
		t.Errorf("text: %s, %v", encoded, err)
	}
	if strings.Contains(text, "hunter2") || strings.Contains(text, fmt.Sprintf("%x", "hunter2")) || s.String() != "******" {
		t.Error(text)
	}
}
