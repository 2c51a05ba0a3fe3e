package scrub

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

// secrets are of the kinds that break a naive replacement: quotes, percent signs, blanks, what URLs and JSON encode, one inside
// another, several lines.
var secrets = []string{"correct horse battery", `qu"o'te\back`, "p%20er+cent/slash=", "Ünïcode-päss", "inner-secret", "an inner-secret outside", "<tag>&amp;more", "ABCDEF0123456789abcdef",
	"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\nsecondlineofthekeywhichislong\n-----END OPENSSH PRIVATE KEY-----\n"}

// writings are the ways in which a program may write s.
func writings(s string) map[string]string {
	j, _ := json.Marshal(s)
	j2, _ := json.Marshal(string(j))
	return map[string]string{
		"plain": s, "query": url.QueryEscape(s), "path": url.PathEscape(s), "userinfo": url.UserPassword("me", s).String(), "json": string(j), "log of json": string(j2)[3:],
		"go": strconv.Quote(s), "base64": base64.StdEncoding.EncodeToString([]byte(s)), "base64 url": base64.URLEncoding.EncodeToString([]byte(s)), "basic": base64.StdEncoding.EncodeToString([]byte("user:" + s + "!")),
		"basic 2": base64.StdEncoding.EncodeToString([]byte("me:" + s)), "basic 3": base64.RawURLEncoding.EncodeToString([]byte("me2:" + s + "..")),
		"hex": hex.EncodeToString([]byte(s)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(s))), "shell": "'" + strings.ReplaceAll(s, "'", `'\''`) + "'", "sql": "'" + strings.ReplaceAll(s, "'", "''") + "'",
		"crontab": strings.ReplaceAll(s, "%", `\%`), "lower query": lowerPercent(url.QueryEscape(s)),
	}
}

// shows says whether something of a secret is left: a run of it that nobody would guess.
func shows(text, secret string) string {
	for _, form := range []string{secret, url.QueryEscape(secret), base64.StdEncoding.EncodeToString([]byte(secret)), hex.EncodeToString([]byte(secret))} {
		const run = 10
		for i := 0; i+run <= len(form); i += 3 {
			if strings.Contains(strings.ToLower(text), strings.ToLower(form[i:i+run])) {
				return form[i : i+run]
			}
		}
	}
	return ""
}

// TestValues: a known secret goes in every writing, and what is around it stays.
func TestValues(t *testing.T) {
	s := New(append([]string{"", Mark}, secrets...))
	for _, secret := range secrets {
		for how, written := range writings(secret) {
			if strings.HasPrefix(secret, "-----") && (how == "hex" || how == "HEX" || strings.HasPrefix(how, "ba") || how == "path" || how == "query" || how == "lower query" || how == "userinfo") {
				written = strings.TrimRight(written, "\n")
			}
			got := s.Text("before " + written + " after")
			if left := shows(got, secret); left != "" {
				t.Errorf("%s of %q leaves %q: %s", how, secret, left, got)
			}
			if !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " after") && !strings.HasPrefix(secret, "-----") {
				t.Errorf("%s of %q took more: %s", how, secret, got)
			}
		}
	}
	text := "backup_all: ended well: set 202611270400_10-0-0-147420"
	if got := s.Text(text); got != text {
		t.Error(got)
	}
}

// TestShortValues: a short secret goes where it stands alone, and words that hold it stay.
func TestShortValues(t *testing.T) {
	s := New([]string{"set", "4"})
	if got, want := s.Text("set: =set set; sets reset 4 404 '4'"), "******: =****** ******; sets reset ****** 404 '******'"; got != want {
		t.Errorf("%q", got)
	}
}

// TestPatterns: what looks like a secret goes, whoever it is of; what only sounds like one stays.
func TestPatterns(t *testing.T) {
	s := New(nil)
	const x = "Xq7TzPlanted9"
	for _, text := range []string{
		"postgres://me:" + x + "@host:5432/db", "amqp://me:" + x + "/with@at@host", "https://host/p?a=b&sig=" + x + "&c", "https://h/o?X-Amz-Signature=" + x, "https://h/o?x&X-Amz-Security-Token=" + x + "%3D",
		"host=h password=" + x + " user=u", "host=h password='a b " + x + `\' c' user=u`, `{"password": "` + x + `"}`, `"{\"db_password\":\"` + x + `\"}"`, "PGPASSWORD=" + x + " psql", "AWS_SECRET_ACCESS_KEY=" + x,
		"aws_session_token = " + x, "Authorization: Basic " + x, "authorization: bearer " + x, "secret_key: " + x, "apiKey=" + x, "AccountKey=" + x + "==;x", "--passphrase " + x, "--repo1-s3-key-secret=" + x, "--cipher-pass=" + x,
		"alation_conf pgsql.pgbackrest.redundancy.s3.secret -s " + x, "alation_conf -s " + x + " pgsql.pgbackrest.cipher_pass", "alation_conf eventbus.security.sasl_password -s '" + x + "'", "token=" + x + ",next",
		"AKIA" + strings.ToUpper(x) + "XYZ", "AGE-SECRET-KEY-1" + strings.ToUpper(x), "eyJhbGciOi" + x + "." + x + "." + x, "-----BEGIN RSA PRIVATE KEY-----; " + x + "; -----END RSA PRIVATE KEY----- rest",
		"-----BEGIN PRIVATE KEY-----\n" + x + "\n", strings.Repeat("A", 60) + x + strings.Repeat("b", 13) + "==", "redundancy.s3.key = " + x, "passwd:" + x, "pwd => '" + x + "'",
	} {
		got := s.Text(text)
		if strings.Contains(strings.ToLower(got), strings.ToLower(x)) || !strings.Contains(got, Mark) {
			t.Errorf("%s\nbecame\n%s", text, got)
		}
	}
	for _, text := range []string{
		"backup_all: files: 12 files, 4096 bytes", "stanza rosemeta: backup 20261127-040000F", "passphrase of the repository: every user", "--repo1-cipher-pass-file=/var/lib/holdfast/pgbackrest/cipher_pass",
		"set it with: alation_conf pgsql.pgbackrest.cipher_pass -s -", "https://host:9000/bucket/path", "s3://bucket/path", "host /tmp port 5432 as postgres", "the key of a table", "the secret is kept", "https://user@host/x", "000000010000000000000009", strings.Repeat("0f", 32),
	} {
		want := text
		if strings.HasPrefix(text, "passphrase of") { // "passphrase of the repository:" is no name of a value
			want = text
		}
		if got := s.Text(text); got != want {
			t.Errorf("%s\nbecame\n%s", text, got)
		}
	}
}

// TestLines: a private key that goes over lines goes, also where it has no end, and the log goes on.
func TestLines(t *testing.T) {
	l := New(nil).Lines()
	text := "one\n-----BEGIN EC PRIVATE KEY-----\nAAAA\nBBBB\n-----END EC PRIVATE KEY----- two\nthree\nx -----BEGIN PRIVATE KEY-----\nCCCC\n"
	for range keyLines - 1 {
		text += "D\n"
	}
	text += "four"
	var out []string
	for _, line := range strings.Split(text, "\n") {
		out = append(out, l.Line(line))
	}
	got := strings.Join(out, "\n")
	if strings.ContainsAny(got, "ABCD") || !strings.HasPrefix(got, "one\n") || !strings.Contains(got, " two\nthree\nx ") || !strings.HasSuffix(got, "\nfour") {
		t.Errorf("%s", got)
	}
	if got := l.Line("bad \xff bytes"); got != "bad ? bytes" {
		t.Errorf("%q", got)
	}
}

// TestJSON: a document stays a document, numbers stay as they are, and members whose names speak of secrets go.
func TestJSON(t *testing.T) {
	s := New([]string{`qu"ote`})
	b, err := s.JSON(map[string]any{"a": []any{"x " + `qu"ote` + " y", 12345678901234567890.0, true, nil}, `qu"ote`: 1, "sasl_password": "planted", "password_set": true, "id": uint64(18446744073709551615), "token": "", "key_file": "/etc/x"})
	if err != nil || !json.Valid(b) {
		t.Fatal(err)
	}
	for _, want := range []string{`"x ****** y"`, `"******": 1`, `"sasl_password": "******"`, `"password_set": true`, `18446744073709551615`, `"token": ""`, `"key_file": "/etc/x"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
}

// FuzzValue: whatever the secret and what is around it, the secret does not stay.
func FuzzValue(f *testing.F) {
	for _, s := range secrets {
		f.Add(s, "a ", " b")
	}
	f.Fuzz(func(t *testing.T, secret, before, after string) {
		if len(secret) < shortValue || strings.Contains(Mark+Mark, secret) || strings.HasSuffix(secret, "\n") || strings.HasSuffix(secret, "\r") || strings.Contains(before+after, secret) {
			return
		}
		got := New([]string{secret}).Text(before + secret + after)
		if strings.Contains(got, secret) && !strings.Contains(before+Mark+after, secret) {
			t.Errorf("%q in %q", secret, got)
		}
		if got := New([]string{secret}).Text(fmt.Sprintf("%q", secret)); strings.Contains(got, secret) && !strings.Contains(secret, "*") {
			t.Errorf("%q in %q", secret, got)
		}
	})
}
