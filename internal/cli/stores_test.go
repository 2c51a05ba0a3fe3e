package cli

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"holdfast/internal/pg"
	"holdfast/test/stores"
	"holdfast/test/tally"
)

// far is a repository somewhere, as an operator names it. The environment is that of the repository with the number 1.
type far struct {
	words   []string // for holdfast pg and for pgbackrest
	address string   // for holdfast repo
	environ []string
	secrets []string // that are shown nowhere
}

// as is the environment of the repository with another number.
func (f far) as(key string) (environ []string) {
	for _, e := range f.environ {
		environ = append(environ, strings.Replace(e, "PGBACKREST_REPO1_", "PGBACKREST_REPO"+key+"_", 1))
	}
	return environ
}

// farStores start a server each and name an empty repository on it.
var farStores = map[string]func(t *testing.T) far{
	"gcs": func(t *testing.T) far {
		s := stores.GCS(t)
		return far{words: []string{"--repo1-type=gcs", "--repo1-gcs-bucket=" + stores.Bucket, "--repo1-gcs-key-type=token", "--repo1-gcs-endpoint=" + s.Address(),
			"--repo1-storage-ca-file=" + s.CAFile, "--repo1-path=/repo"}, address: "gcs://" + stores.Bucket + "/repo", secrets: []string{"planted-token"},
			environ: []string{"PGBACKREST_REPO1_GCS_KEY=planted-token", "PGBACKREST_REPO1_GCS_KEY_TYPE=token", "PGBACKREST_REPO1_GCS_ENDPOINT=" + s.Address(), "PGBACKREST_REPO1_STORAGE_CA_FILE=" + s.CAFile}}
	},
	"azure": func(t *testing.T) far {
		s := stores.Azure(t)
		return far{words: []string{"--repo1-type=azure", "--repo1-azure-container=" + stores.Container, "--repo1-storage-host=127.0.0.1", "--repo1-storage-port=" + strconv.Itoa(s.Port),
			"--repo1-storage-ca-file=" + s.CAFile, "--repo1-path=/repo"}, address: "azure://" + stores.Container + "/repo", secrets: []string{s.Key},
			environ: []string{"PGBACKREST_REPO1_AZURE_ACCOUNT=" + stores.Account, "PGBACKREST_REPO1_AZURE_KEY=" + s.Key, "PGBACKREST_REPO1_STORAGE_HOST=" + s.Address(), "PGBACKREST_REPO1_STORAGE_CA_FILE=" + s.CAFile}}
	},
	"sftp": func(t *testing.T) far {
		s := stores.SSH(t)
		port := strconv.Itoa(s.Port)
		return far{words: []string{"--repo1-type=sftp", "--repo1-sftp-host=127.0.0.1", "--repo1-sftp-host-port=" + port, "--repo1-sftp-host-user=" + s.User, "--repo1-sftp-private-key-file=" + s.KeyFile,
			"--repo1-sftp-known-host=" + s.KnownHosts, "--repo1-path=" + s.Dir + "/repo"}, address: "sftp://" + s.User + "@127.0.0.1:" + port + s.Dir + "/repo",
			environ: []string{"PGBACKREST_REPO1_SFTP_PRIVATE_KEY_FILE=" + s.KeyFile, "PGBACKREST_REPO1_SFTP_KNOWN_HOST=" + s.KnownHosts}}
	},
	"cifs": func(t *testing.T) far {
		dir := filepath.Join(stores.Mount(t), "repo")
		return far{words: []string{"--repo1-type=cifs", "--repo1-path=" + dir}, address: dir, environ: []string{"PGBACKREST_REPO1_TYPE=cifs"}}
	},
	"s3": func(t *testing.T) far {
		s := stores.StartS3(t, "versitygw")
		bucket := s.Bucket(t)
		return far{words: []string{"--repo1-type=s3", "--repo1-s3-bucket=" + bucket, "--repo1-s3-region=" + s.Region, "--repo1-s3-endpoint=" + s.Endpoint, "--repo1-s3-uri-style=path",
			"--repo1-storage-ca-file=" + s.CA.File, "--repo1-path=/repo"}, address: "s3://" + bucket + "/repo", secrets: []string{s.Secret},
			environ: []string{"PGBACKREST_REPO1_S3_KEY=" + s.Key, "PGBACKREST_REPO1_S3_KEY_SECRET=" + s.Secret, "PGBACKREST_REPO1_S3_REGION=" + s.Region, "PGBACKREST_REPO1_S3_ENDPOINT=" + s.Endpoint,
				"PGBACKREST_REPO1_S3_URI_STYLE=path", "PGBACKREST_REPO1_STORAGE_CA_FILE=" + s.CA.File}}
	},
}

const cipherEnv = "PGBACKREST_REPO1_CIPHER_PASS=a planted passphrase"

// farRig is a stopped cluster whose backups go far away, encrypted.
type farRig struct {
	*copyRig
	at far
}

func newFarRig(t *testing.T, at far) *farRig {
	r := &farRig{newCopyRig(t), at}
	r.environ = append([]string{cipherEnv, "PGBACKREST_REPO1_CIPHER_TYPE=aes-256-cbc"}, at.environ...)
	return r
}

// far is a verb of holdfast pg there.
func (r *farRig) far(verb string, words ...string) said {
	r.t.Helper()
	argv := append([]string{"pg", verb, "--stanza=s", "--lock-path=" + r.locks}, r.at.words...)
	if strings.HasPrefix(verb, "repo-") {
		argv = append([]string{"pg", verb}, r.at.words...)
	}
	s := r.run(append(argv, words...)...)
	for _, secret := range r.at.secrets {
		if strings.Contains(s.out+s.errs, secret) {
			r.t.Errorf("%s shows a secret:\n%s%s", verb, s.out, s.errs)
		}
	}
	return s
}

// change makes the cluster another one: round n. One file does not compress and is sent in parts.
func (r *farRig) change(n int) {
	r.t.Helper()
	big := make([]byte, 9<<20)
	rand.NewChaCha8([32]byte{byte(n)}).Read(big)
	for name, b := range map[string]string{"pg_hba.conf": strings.Repeat("x", 100*n), "base/1/" + strconv.Itoa(2000+n): strings.Repeat("\x00", 8192*n), "big": string(big)} {
		file, old := filepath.Join(r.data, name), time.Date(2026, 3, 1, n, 0, 0, 0, time.UTC)
		if err := errors.Join(os.WriteFile(file, []byte(b), 0o600), os.Chtimes(file, old, old)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// segment is a WAL segment of the cluster.
func (r *farRig) segment(name string) string {
	r.t.Helper()
	const size = 1 << 20
	b, err := os.ReadFile("../pg/testdata/wal-15")
	if err != nil {
		r.t.Fatal(err)
	}
	timeline, start, err := pg.ParseSegmentName(name, size)
	if err != nil {
		r.t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(b[4:], timeline)
	binary.LittleEndian.PutUint64(b[8:], uint64(start))
	file := filepath.Join(r.data, "pg_wal", name)
	old := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	if err := errors.Join(os.WriteFile(file, append(b, make([]byte, size-len(b))...), 0o600), os.Chtimes(file, old, old)); err != nil {
		r.t.Fatal(err)
	}
	return file
}

// files are the cluster's, as a restore has to bring them back.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(name, "pg_wal/") {
			return err
		}
		b, err := os.ReadFile(file)
		switch path.Base(name) {
		case "pg_control": // the one restored can't be used until the restore is complete
		case "postgresql.auto.conf", "recovery.signal":
		default:
			all[name] = string(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// restores brings a backup back, the latest if label is empty, and compares it file for file.
func (r *farRig) restores(label string, want map[string]string) {
	r.t.Helper()
	dir := filepath.Join(r.t.TempDir(), "restored")
	words := []string{"--pg1-path=" + dir, "--type=none"}
	if label != "" {
		words = append(words, "--set="+label)
	}
	r.far("restore", words...).has(r.t, 0, "restored")
	got := files(r.t, dir)
	for name, b := range want {
		if got[name] != b {
			r.t.Errorf("%s: %s has %d bytes, want %d, or others", label, name, len(got[name]), len(b))
		}
	}
	if len(got) != len(want) {
		r.t.Errorf("%s: %d files, want %d", label, len(got), len(want))
	}
	tally.Count(r.t, "restores from stores, file for file", 1)
}

// TestEveryStore keeps a repository on a store of each kind by the command line: stanza, WAL, a full backup in bundles and what
// builds on it, encrypted; verified, restored file for file, expired. The name pgbackrest finds the same there.
func TestEveryStore(t *testing.T) {
	for kind, start := range farStores {
		t.Run(kind, func(t *testing.T) {
			r := newFarRig(t, start(t))
			r.far("stanza-create", "--pg1-path="+r.data).has(t, 0, "created")
			wal := r.segment("000000010000000000000001")
			r.far("archive-push", "--pg1-path="+r.data, wal).has(t, 0)
			got := filepath.Join(t.TempDir(), "wal")
			r.far("archive-get", "--pg1-path="+r.data, filepath.Base(wal), got).has(t, 0)
			a, aerr := os.ReadFile(wal)
			b, berr := os.ReadFile(got)
			if err := errors.Join(aerr, berr); err != nil || string(a) != string(b) {
				t.Errorf("the WAL comes back otherwise: %v", err)
			}
			r.far("archive-get", "--pg1-path="+r.data, "000000010000000000000002", got).has(t, 1)

			backup := func(n int, typ string) (string, map[string]string) {
				t.Helper()
				r.change(n)
				s := r.far("backup", "--pg1-path="+r.data, "--no-online", "--type="+typ, "--repo1-bundle", "--json")
				var res struct{ Label string }
				if err := json.Unmarshal([]byte(s.out), &res); err != nil || s.code != 0 {
					t.Fatalf("%v %+v", err, s)
				}
				return res.Label, files(t, r.data)
			}
			full, fullFiles := backup(1, "full")
			incr, incrFiles := backup(2, "incr")
			r.far("verify").has(t, 0, "0 finding(s)")
			r.far("info").has(t, 0, full, incr)
			r.restores(full, fullFiles)
			r.restores(incr, incrFiles)
			second, secondFiles := backup(3, "full")
			r.far("expire", "--repo1-retention-full=1").has(t, 0, full)
			if s := r.far("info"); strings.Contains(s.out, full) || !strings.Contains(s.out, second) {
				t.Errorf("after expire: %s", s.out)
			}
			r.far("repo-ls", "backup/s").has(t, 0, second)
			r.far("verify").has(t, 0, "0 finding(s)")
			r.restores(second, secondFiles)

			theirs := backrestSays(t, r.environ, append(append([]string{"--no-config", "--stanza=s"}, r.at.words...), "info")...)
			theirs.has(t, 0, "full backup: "+second, "cipher: aes-256-cbc")
			r.far("stop").has(t, 2) // a stop file is of this host: no repository is asked
			tally.Count(t, "stores that hold a repository", 1)
		})
	}
}

// TestCopyBetweenStores takes backups from one kind of store to another.
func TestCopyBetweenStores(t *testing.T) {
	for _, c := range []struct{ from, to string }{{"posix", "azure"}, {"s3", "gcs"}, {"posix", "sftp"}, {"posix", "cifs"}} {
		t.Run(c.from+" to "+c.to, func(t *testing.T) {
			var from far
			if c.from == "posix" {
				dir := filepath.Join(t.TempDir(), "repo")
				from = far{words: []string{"--repo1-path=" + dir}, address: dir}
			} else {
				from = farStores[c.from](t)
			}
			r := newFarRig(t, from)
			r.far("stanza-create", "--pg1-path="+r.data).has(t, 0, "created")
			for n, typ := range []string{"full", "incr"} {
				r.change(n + 1)
				r.far("backup", "--pg1-path="+r.data, "--no-online", "--type="+typ, "--repo1-bundle").has(t, 0)
			}
			want := files(t, r.data)
			to := farStores[c.to](t)
			both := append(append([]string{"PGBACKREST_REPO2_CIPHER_TYPE=aes-256-cbc", "PGBACKREST_REPO2_CIPHER_PASS=another planted passphrase"}, r.environ...), to.as("2")...)
			near := r.environ
			r.environ = both
			for _, verb := range []string{"copy --stanza=s --all --dry-run", "copy --stanza=s --all", "copy --stanza=s --all", "sync"} {
				words := append(append([]string{"repo"}, strings.Fields(verb)...), "--from="+from.address, "--to="+to.address, "--lock-path="+r.locks)
				s := r.run(words...)
				s.has(t, 0)
				for _, secret := range append(from.secrets, to.secrets...) {
					if strings.Contains(s.out+s.errs, secret) {
						t.Errorf("%s shows a secret:\n%s%s", verb, s.out, s.errs)
					}
				}
			}
			r.run("repo", "diff", "--from="+from.address, "--to="+to.address).has(t, 0, "the target has everything")
			r.environ = near

			copied := &farRig{r.copyRig, to}
			copied.environ = append([]string{"PGBACKREST_REPO1_CIPHER_TYPE=aes-256-cbc", "PGBACKREST_REPO1_CIPHER_PASS=another planted passphrase"}, to.environ...)
			copied.far("verify").has(t, 0, "0 finding(s)")
			copied.restores("", want)
			tally.Count(t, "copies between kinds of store", 1)
		})
	}
}

// TestSFTPKeys: who the server is, is proven before anything is sent, and a locked key is opened with the passphrase of the environment.
func TestSFTPKeys(t *testing.T) {
	server := stores.SSH(t)
	base := []string{"holdfast", "pg", "repo-ls", "--repo1-type=sftp", "--repo1-sftp-host=127.0.0.1", "--repo1-sftp-host-port=" + strconv.Itoa(server.Port), "--repo1-sftp-host-user=" + server.User, "--repo1-path=" + server.Dir}
	plain, known, fingerprint := "--repo1-sftp-private-key-file="+server.KeyFile, "--repo1-sftp-known-host="+server.KnownHosts, "--repo1-sftp-host-fingerprint="+ssh.FingerprintSHA256(server.HostKey)
	unknown := filepath.Join(t.TempDir(), "known_hosts")
	for name, c := range map[string]struct {
		words   []string
		environ string
		code    int
		want    string
	}{
		"known":                    {[]string{plain, known}, "", 0, ""},
		"unknown":                  {[]string{plain, "--repo1-sftp-known-host=" + unknown}, "", exitAway, "ssh-keyscan -p " + strconv.Itoa(server.Port)},
		"accepted when new":        {[]string{plain, "--repo1-sftp-known-host=" + filepath.Join(t.TempDir(), "new"), "--repo1-sftp-host-key-check-type=accept-new"}, "", 0, ""},
		"pinned":                   {[]string{plain, fingerprint}, "", 0, ""},
		"pinned to another":        {[]string{plain, known, "--repo1-sftp-host-fingerprint=00ff"}, "", exitAway, "refused"},
		"a pin that is not heeded": {[]string{plain, known, fingerprint, "--repo1-sftp-host-key-check-type=none"}, "", exitUsage, "not valid without option"},
		"locked":                   {[]string{known, "--repo1-sftp-private-key-file=" + server.LockedKey}, "", exitUsage, "needs its passphrase"},
		"opened":                   {[]string{known, "--repo1-sftp-private-key-file=" + server.LockedKey}, "PGBACKREST_REPO1_SFTP_PRIVATE_KEY_PASSPHRASE=" + server.Passphrase, 0, ""},
		"passphrase in the open":   {[]string{known, "--repo1-sftp-private-key-passphrase=" + server.Passphrase}, "", exitUsage, "unknown flag"},
		"no key":                   {[]string{known}, "", exitUsage, "there is no agent"},
	} {
		env, out, errs := bareEnv(strings.NewReader(""), append(append([]string{}, base...), c.words...)...)
		env.Environ = func() []string { return []string{c.environ} }
		code := Main(t.Context(), env)
		if !(said{out.String(), errs.String(), code}).is(c.code, c.want) || strings.Contains(out.String()+errs.String(), server.Passphrase) {
			t.Errorf("%s: code %d, want %d with %q\n%s%s", name, code, c.code, c.want, out, errs)
		}
	}
}

// is says whether the code is right and the text there.
func (s said) is(code int, want string) bool {
	return s.code == code && strings.Contains(s.out+s.errs, want)
}

// TestStoreParameters describes an external storage of each kind by the instance's parameters, one call after the other: as soon
// as they are complete it is tried, and nothing shows what is secret.
func TestStoreParameters(t *testing.T) {
	gcs, azure, server := stores.GCS(t), stores.Azure(t), stores.SSH(t)
	for kind, c := range map[string]struct {
		files   map[string]string // in the instance's root, from where
		set     []string
		secrets []string
		name    string
	}{
		"gcs": {map[string]string{"ca.pem": gcs.CAFile, "key.json": stores.ServiceAccount(t, nil)}, []string{"gcs.bucket " + stores.Bucket, "gcs.endpoint " + gcs.Address(), "gcs.ca_file /ca.pem", "gcs.key_file /key.json"}, nil, "gcs://" + stores.Bucket + "/holdfast"},
		"azure": {map[string]string{"ca.pem": azure.CAFile}, []string{"azure.account " + stores.Account, "azure.container " + stores.Container, "azure.endpoint " + azure.Address(), "azure.uri_style path",
			"azure.ca_file /ca.pem", "azure.key -"}, []string{azure.Key}, "azure://" + stores.Container + "/holdfast"},
		"sftp": {map[string]string{"id": server.LockedKey, "known": server.KnownHosts}, []string{"sftp.host 127.0.0.1", "sftp.port " + strconv.Itoa(server.Port), "sftp.user " + server.User, "sftp.path " + server.Dir,
			"sftp.known_hosts_file /known", "sftp.passphrase -", "sftp.private_key_file /id"}, []string{server.Passphrase}, "sftp://" + server.User + "@127.0.0.1" + server.Dir + "/holdfast"},
		"cifs": {nil, []string{"posix.path /far"}, nil, "/far/holdfast"},
	} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t)
			for to, from := range c.files {
				b, err := os.ReadFile(from)
				if err := errors.Join(err, os.WriteFile(filepath.Join(r.root, to), b, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			const prefix = "pgsql.pgbackrest.redundancy."
			r.run("alation_conf", "alation.backup_v2.pgbackup_compression", "-s", "False", prefix+"enabled", "-s", "True", prefix+"type", "-s", kind).has(t, 0)
			r.run("holdfast", "sets", "list", "--store").has(t, exitFailed, "is not set: alation_conf "+prefix)
			last := said{}
			for _, line := range c.set {
				name, value, _ := strings.Cut(line, " ")
				stdin := ""
				if value == "-" {
					stdin = c.secrets[0] + "\n"
				}
				last = r.typed(stdin, "alation_conf", prefix+name, "-s", value)
				last.has(t, 0)
				for _, secret := range c.secrets {
					if strings.Contains(last.out+last.errs, secret) {
						t.Errorf("%s shows the secret", line)
					}
				}
			}
			last.has(t, 0, c.name+": can be written, read, listed and removed from")
			r.run("holdfast", "sets", "list", "--store").has(t, 0)
		})
	}
}
