package kit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
)

func sample() *Kit {
	at := time.Date(2026, 11, 29, 4, 0, 0, 0, time.UTC)
	return &Kit{Made: at, Program: "Holdfast test", Host: "here", Set: "202611290400_1-0-0-0", Instance: Instance{Root: "/", DataDir: "/d", BackupDir: "/b", User: "alation", AppVersion: "1.0.0.0"},
		Key: Secret(strings.Repeat("k", KeySize)), Parameters: map[string]Secret{"a.b": "PLANTED-parameter", "c.d": ""},
		Files: []File{{"x.ca_file", 0o600, "PLANTED-file"}}, Store: &Store{"s3", "s3://bucket/path", "pgbackrest", "sets"},
		Stanzas: []Stanza{{"rosemeta", "15", 7}}, Sets: []Set{{ID: "202611290400_1-0-0-0", Mode: "apart", Began: at, Size: 9, Tarballs: []string{"t.tar.gz"}, Backups: []string{"rosemeta L"}, InStore: true}}}
}

func encoded(t testing.TB, k *Kit) []byte {
	t.Helper()
	b, err := k.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSealed: what is sealed is opened by who may, nobody else learns more than that, and every damage is seen.
func TestSealed(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	other, err2 := age.GenerateX25519Identity()
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	const pass = "a good passphrase"
	for name, c := range map[string]struct {
		lock  Lock
		right Unlock
		wrong map[Unlock]error
	}{
		"recipient": {Lock{Recipients: []string{other.Recipient().String(), id.Recipient().String()}}, Unlock{Identities: Secret("# a comment\n" + id.String() + "\n")},
			map[Unlock]error{{Passphrase: pass}: ErrWanted, {Identities: Secret(mustID(t))}: ErrIdentity, {}: ErrWanted}},
		"passphrase": {Lock{Passphrase: pass, WorkFactor: 10}, Unlock{Passphrase: pass},
			map[Unlock]error{{Passphrase: "another one"}: ErrPassphrase, {Identities: Secret(id.String())}: ErrWanted, {}: ErrWanted}},
	} {
		t.Run(name, func(t *testing.T) {
			sealed, err := Seal(encoded(t, sample()), c.lock)
			if err != nil || bytes.Contains(sealed, []byte("PLANTED")) {
				t.Fatal(err)
			}
			got, err := Open(sealed, c.right)
			if err != nil || !reflect.DeepEqual(got, sample()) {
				t.Fatalf("%v\n%+v", err, got)
			}
			for u, want := range c.wrong {
				if _, err := Open(sealed, u); !errors.Is(err, want) {
					t.Errorf("%v, want %v", err, want)
				}
			}
			for _, cut := range []int{0, 10, len(sealed) / 2, len(sealed) - 1} {
				if _, err := Open(sealed[:cut], c.right); err == nil {
					t.Errorf("cut to %d bytes it opens", cut)
				}
			}
			for i := range 40 {
				bad := bytes.Clone(sealed)
				bad[i*len(bad)/40] ^= 4
				if _, err := Open(bad, c.right); err == nil {
					t.Errorf("with byte %d changed it opens", i*len(bad)/40)
				}
			}
		})
	}
	if _, err := Open([]byte("something else"), Unlock{Passphrase: pass}); !errors.Is(err, ErrNotSealed) {
		t.Error(err)
	}
	sealed, err := Seal([]byte(`{"kind":"another"}`), Lock{Recipients: []string{id.Recipient().String()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(sealed, Unlock{Identities: Secret(id.String())}); !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}

func mustID(t *testing.T) string {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// TestLocks: what nobody can be encrypted to is refused, and a secret key given by mistake is not shown.
func TestLocks(t *testing.T) {
	id := mustID(t)
	for _, l := range []Lock{{}, {Recipients: []string{"age1nobody"}}, {Recipients: []string{id}}, {Recipients: []string{"age1x"}, Passphrase: "p"}} {
		if _, err := Seal([]byte("x"), l); err == nil || strings.Contains(err.Error(), id) || strings.Contains(err.Error(), id[20:]) {
			t.Errorf("%v", err)
		}
	}
	if err := CheckRecipient(id); err == nil || !strings.Contains(err.Error(), "secret key") {
		t.Error(err)
	}
	if err := CheckRecipient("age1a\nage1b"); err == nil {
		t.Error("two recipients are taken for one")
	}
	big, err := age.NewScryptRecipient("a good passphrase")
	if err != nil {
		t.Fatal(err)
	}
	big.SetWorkFactor(1)
	var out bytes.Buffer
	w, err := age.Encrypt(&out, big)
	if err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	greedy := bytes.Replace(out.Bytes(), []byte(" 1\n"), []byte(" 30\n"), 1) // a file that wants a terabyte
	if _, err := Open(greedy, Unlock{Passphrase: "a good passphrase"}); err == nil {
		t.Error("a work factor of 30 is worked on")
	}
}

// TestSecretsStayHidden: neither the kit nor what it is made of can be printed or encoded by accident.
func TestSecretsStayHidden(t *testing.T) {
	k := sample()
	j, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	text := string(j) + fmt.Sprintf("%v %+v %#v %s %q %x", k, k, k, k.Key, k.Parameters, k.Files) + fmt.Sprint(Lock{Passphrase: "PLANTED"}, Unlock{Identities: "PLANTED"})
	if strings.Contains(text, "PLANTED") || strings.Contains(text, "kkkk") || strings.Contains(text, fmt.Sprintf("%x", "PLANTED")) {
		t.Error(text)
	}
}

// TestBounds: what is too much or has a name that nothing has is refused on both ways; of many sets the newest are kept.
func TestBounds(t *testing.T) {
	k := sample()
	for i := range MaxSets + 5 {
		k.Sets = append(k.Sets, Set{ID: fmt.Sprintf("s%d", i)})
	}
	got, err := Parse(encoded(t, k))
	if err != nil || len(got.Sets) != MaxSets || got.Sets[MaxSets-1].ID != fmt.Sprintf("s%d", MaxSets+4) {
		t.Fatalf("%v, %d sets", err, len(got.Sets))
	}
	for name, change := range map[string]func(*Kit){
		"key":       func(k *Kit) { k.Key = "short" },
		"set":       func(k *Kit) { k.Set = "../x" },
		"sets":      func(k *Kit) { k.Sets[0].ID = "a/b" },
		"tarball":   func(k *Kit) { k.Sets[0].Tarballs = []string{"../../etc/passwd"} },
		"parameter": func(k *Kit) { k.Parameters["\x1b[0m"] = "" },
		"mode":      func(k *Kit) { k.Files[0].Mode = 0o4755 },
		"file":      func(k *Kit) { k.Files[0].Data = Secret(strings.Repeat("x", MaxFile+1)) },
		"text":      func(k *Kit) { k.Host = "a\x1b[31mb" },
		"store":     func(k *Kit) { k.Store.Name = "a\nb" },
		"size":      func(k *Kit) { k.Parameters["big"] = Secret(strings.Repeat("x", MaxSize)) },
	} {
		k := sample()
		change(k)
		if _, err := k.Encode(); err == nil || strings.Contains(err.Error(), "PLANTED") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{"", "{}", `{"kind":"holdfast recovery kit","format":2,"set":"a"}`, `{"kind":"holdfast recovery kit","format":1,"set":"a","parameters":"PLANTED"}`,
		`{"kind":"holdfast recovery kit","format":1,"set":"a"}{}`, strings.Repeat(" ", MaxSize+1)} {
		if _, err := Parse([]byte(text)); !errors.Is(err, ErrFormat) || strings.Contains(err.Error(), "PLANTED") {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

// FuzzParse: no document, whatever is in it, is more than an error; what is read is written and read the same.
func FuzzParse(f *testing.F) {
	f.Add(encoded(f, sample()))
	f.Add([]byte(`{"kind":"holdfast recovery kit","format":1,"set":"a","sets":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Error(err)
			}
			return
		}
		again, err := k.Encode()
		if err != nil {
			if len(b) > MaxSize/4 { // escapes may grow
				return
			}
			t.Fatal(err)
		}
		back, err := Parse(again)
		if err != nil || back.Set != k.Set || len(back.Parameters) != len(k.Parameters) || len(back.Sets) != len(k.Sets) || back.Key != k.Key {
			t.Errorf("%v\n%s", err, again)
		}
	})
}
