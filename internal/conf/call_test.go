package conf

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// show prints a call with its values, which here are no secrets.
func show(c Call) string {
	words := []string{[]string{"get", "set", "list", "unset", "help"}[c.Op]}
	words = append(words, c.Names...)
	for _, p := range c.Pairs {
		words = append(words, fmt.Sprintf("%s=%q", p.Name, p.Value.Reveal()))
	}
	if len(c.Stdin) > 0 {
		words = append(words, fmt.Sprint("stdin", c.Stdin))
	}
	if c.Root != "" {
		words = append(words, "root:"+c.Root)
	}
	if c.JSON {
		words = append(words, "json")
	}
	return strings.Join(words, " ")
}

func TestParseCall(t *testing.T) {
	for line, want := range map[string]string{
		"snapshot.enabled":          "get snapshot.enabled",
		"snapshot.enabled -s False": `set snapshot.enabled="False"`,
		"a.b -s":                    `set a.b=""`,
		"a.b -s 1 c.d -s 2":         `set a.b="1" c.d="2"`,
		"-s 1 a.b":                  `set a.b="1"`,
		"-s 1 a.b -s 2 c.d":         `set a.b="1" c.d="2"`,
		"a.b -s -":                  `set a.b="" stdin[0]`,
		"-s - a.b":                  `set a.b="" stdin[0]`,
		"a.b -s -5":                 `set a.b="-5"`,
		"a.b -s --json":             `set a.b="--json"`,
		"--json a.b":                "get a.b json",
		"a.b --json":                "get a.b json",
		"--root /x a.b -s 1":        `set a.b="1" root:/x`,
		"--root=/x a.b":             "get a.b root:/x",
		"--list":                    "list",
		"--list pgsql. --json":      "list pgsql. json",
		"--unset a.b c.d":           "unset a.b c.d",
		"--help":                    "help",
		"a.b -s 1 --help":           "help",
		"snapshot.enabled -s alation.version -s 1":   `set snapshot.enabled="" alation.version="1"`,
		"snapshot.enabled -s alation.version":        `set snapshot.enabled="alation.version"`,
		"pgsql.pgbackrest.redundancy.s3.endpoint -s": `set pgsql.pgbackrest.redundancy.s3.endpoint=""`,
	} {
		c, err := ParseCall(strings.Fields(line))
		if err != nil || show(c) != want {
			t.Errorf("%s: %s, %v; want %s", line, show(c), err, want)
		}
	}
	if c, err := ParseCall([]string{"a.b", "-s", ""}); err != nil || show(c) != `set a.b=""` {
		t.Errorf("the empty word as value: %v", err)
	}
}

func TestParseCallRefuses(t *testing.T) {
	for _, line := range []string{
		"", "a.b c.d", "-s", "-s 1", "-s -s a.b", "a.b -s -s", "a.b -s 1 2", "a.b -s 1 c.d", "a.b -s 1 -s 2 c.d", "-s 1 a.b c.d -s 2",
		"--nothing", "-x a.b", "--root", "--json=1 a.b", "--unset", "--list a b", "--list --unset a", "a.b --list", "--unset a.b -s 1", "a.b -s 1 --unset a", "x -s y -s z",
	} {
		c, err := ParseCall(strings.Fields(line))
		var use *UsageError
		if !errors.As(err, &use) || !errors.Is(err, ErrRefused) {
			t.Errorf("%q: %s, %v", line, show(c), err)
		}
	}
	if _, err := ParseCall([]string{""}); err == nil {
		t.Error("an empty word is not a parameter")
	}
}

func TestReadValues(t *testing.T) {
	args := []string{"a.b", "-s", "-", "c.d", "-s", "x", "e.f", "-s", "-"}
	for in, want := range map[string][]string{
		"one\ntwo\n": {"one", "x", "two"}, "one\r\ntwo": {"one", "x", "two"}, "\n two \n": {"", "x", " two "},
		"one\n": nil, "": nil, "1\n2\n3\n": nil,
	} {
		c, err := ParseCall(args)
		if err != nil {
			t.Fatal(err)
		}
		err = c.ReadValues(strings.NewReader(in))
		if want == nil {
			if !errors.Is(err, ErrRefused) {
				t.Errorf("%q: %v", in, err)
			}
			continue
		}
		var got []string
		for _, p := range c.Pairs {
			got = append(got, p.Value.Reveal())
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

// FuzzParseCall holds the grammar to its shape whatever is typed: an error is bad use, a call is complete.
func FuzzParseCall(f *testing.F) {
	for _, seed := range []string{"snapshot.enabled", "a.b\x00-s\x001\x00c.d\x00-s\x002", "-s\x001\x00a.b", "a.b\x00-s", "a.b\x00-s\x00-", "--list\x00p", "--unset\x00a", "--root\x00/\x00a", "--json\x00--help"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		c, err := ParseCall(strings.Split(line, "\x00"))
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		if (c.Op == OpSet) != (len(c.Pairs) > 0) || c.Op == OpGet && len(c.Names) != 1 || c.Op == OpUnset && len(c.Names) == 0 {
			t.Fatalf("an incomplete call: %s", show(c))
		}
		for _, p := range c.Pairs {
			if p.Name == "" || p.Name == "-s" || p.Value.Reveal() == "-s" {
				t.Fatalf("a pair that cannot be: %s", show(c))
			}
		}
	})
}

// FuzzValue proves for every type that what Parse returns is a fixed point: what is stored loads again, unchanged.
func FuzzValue(f *testing.F) {
	for _, seed := range []string{"True", "21600", "mon,SUN", "a/../b", "https://h:1/p", "1-2-3-4", "zst", "r:data=/d,port=1;l:data=/e", `[{"stanza":"a","data":"/a,b"}]`, `[{"stanza":"a","data":"/x","user":"a;b"}]`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for i := range table {
			k := &table[i]
			first, err := k.Parse(text)
			if err != nil {
				if !errors.Is(err, ErrRefused) {
					t.Fatalf("%s: not a refusal: %v", k.Name, err)
				}
				continue
			}
			if again, err := k.Parse(first); err != nil || again != first {
				t.Fatalf("%s: %q became %q became %q, %v", k.Name, text, first, again, err)
			}
			if strings.ContainsAny(first, "\n\r\x00") {
				t.Fatalf("%s: %q would break a line", k.Name, first)
			}
		}
	})
}

// FuzzFile reads any bytes as a store's file and writes it again without losing a value.
func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"format":1,"values":{"snapshot.enabled":"False","x.y":[1],"pgsql.pgbackrest.cipher_pass":{"sealed":"v1:AAAA"}},"more":{}}`))
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := parseFile(data)
		if err != nil {
			return
		}
		first.read("/nonexistent")
		out, err := first.encode()
		if err != nil {
			t.Fatal(err)
		}
		second, err := parseFile(out)
		if err != nil || len(second.values) != len(first.values) || len(second.members) != len(first.members) {
			t.Fatalf("%s: %v", out, err)
		}
	})
}
