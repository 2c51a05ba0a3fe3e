package pg

import "testing"

func TestParseLSN(t *testing.T) {
	for text, want := range map[string]LSN{
		"0/0":               0,
		"16/B374D848":       0x16_B374D848,
		"ffffffff/ffffffff": ^LSN(0),
		"0/0000000A":        10,
	} {
		if got, err := ParseLSN(text); err != nil || got != want {
			t.Errorf("ParseLSN(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "/", "1", "1/", "/1", "1/2/3", "+1/2", "1/-2", "0x1/2", "1/1_0", "100000000/0", "0/000000001", " 1/2", "g/0"} {
		if got, err := ParseLSN(text); err == nil {
			t.Errorf("ParseLSN(%q) = %v, want an error", text, got)
		}
	}
	if got := LSN(0x16_0000D848).String(); got != "16/D848" {
		t.Errorf("String() = %s", got)
	}
}

func FuzzLSN(f *testing.F) {
	for _, s := range []string{"0/0", "16/B374D848", "FFFFFFFF/ffffffff", "1/", "+1/1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		lsn, err := ParseLSN(s)
		if err != nil {
			return
		}
		if again, err := ParseLSN(lsn.String()); err != nil || again != lsn {
			t.Fatalf("%q is %v, which reads as %v, %v", s, lsn, again, err)
		}
	})
}
