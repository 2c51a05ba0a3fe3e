package instance

import (
	"slices"
	"strings"
	"testing"
)

// theirs is the crontab that the source document shows as the result.
const theirs = `* * * * * /opt/alation/alation/opt/alation/ops/actions/unjailed_update_auto_alation > /dev/null 2>&1
0 4 * * * source /opt/alation/alation/opt/alation/ops/alation_constants; sudo chroot "${ALATION_CHROOT}" /bin/su - ${ALATION_USER} -c "alation_action backup_all"
`

func TestCronEntries(t *testing.T) {
	product := &Instance{dir: "/opt/alation/alation", m: marker{User: "alation"}}
	host := &Instance{dir: "/", m: marker{User: "root"}}
	odd := &Instance{dir: "/srv/it's 100% mine", m: marker{User: "u"}}
	ours := func(i *Instance) string {
		line, err := i.CronLine("0 4 * * *")
		if err != nil {
			t.Fatal(err)
		}
		return line
	}
	for _, c := range []struct {
		name, crontab string
		in            *Instance
		want          []int
		problems      int
		ours          bool
	}{
		{"the document's result", theirs, product, []int{2}, 0, false},
		{"of another instance", theirs, host, nil, 0, false},
		{"of another instance", theirs, odd, nil, 0, false},
		{"as the document's command really enters it", `0 4 * * * source /opt/alation/alation/opt/alation/ops/alation_constants; sudo chroot  /bin/su -  -c alation_action backup_all` + "\n", product, []int{1}, 2, false},
		{"a comment", "# " + theirs[strings.Index(theirs, "0 4"):], product, nil, 0, false},
		{"ours", "MAILTO=x\nSHELL=/bin/dash\n" + ours(product) + "\n", product, []int{3}, 0, true},
		{"ours of odd roots", ours(odd) + "\n", odd, []int{1}, 0, true},
		{"ours of the host", "#\n" + ours(host) + "\n", host, []int{2}, 0, true},
		{"of the host, by name", "5 5 * * 1 root alation_action backup_all\n0 4 * * * /usr/local/bin/holdfast backup >/dev/null\n@daily holdfast --root /srv/x backup\n", host, []int{1, 2}, 0, false},
		{"by root", "@daily holdfast --root /opt/alation/alation backup\n@daily holdfast --root /opt/alation/alation2 backup\n", product, []int{1}, 0, false},
		{"other verbs", "0 0 * * * holdfast schedule run logs\n5 * * * * holdfast schedule run copy\n0 9 * * * holdfast sets list | mail -s \"holdfast backup report\" me\n0 3 * * * holdfast backup --dry-run || mail me\n0 4 * * * holdfast schedule run\n0 4 * * * holdfast --root / schedule run backup >/dev/null\n", host, []int{5, 6}, 0, false},
		{"another instance's program, named by its root", "0 4 * * * /usr/local/bin/holdfast backup --root /srv/other\n0 4 * * * HOLDFAST_ROOT=/srv/other /usr/local/bin/holdfast backup\n0 4 * * * /usr/local/bin/holdfast backup --root=/\n", host, []int{3}, 0, false},
		{"something else", "0 4 * * * holdfast --root /opt/alation/alation sets copy\n", product, nil, 0, false},
	} {
		var got []int
		problems := 0
		for _, e := range c.in.CronEntries(c.crontab) {
			got = append(got, e.Number)
			problems += len(e.Problems)
			if e.Ours != c.ours {
				t.Errorf("%s: ours is %v: %s", c.name, e.Ours, e.Text)
			}
		}
		if !slices.Equal(got, c.want) || problems != c.problems {
			t.Errorf("%s: lines %v with %d problems, want %v and %d", c.name, got, problems, c.want, c.problems)
		}
	}
	for text, want := range map[string]bool{
		"holdfast backup && rsync -a /b far:": true, "holdfast backup; date": true, "holdfast backup | mail me": true,
		"holdfast backup >/dev/null 2>&1": false, "cd / && holdfast backup": false, "bash -c 'holdfast backup'": false,
	} {
		if e := host.CronEntries("0 4 * * * " + text + "\n"); len(e) != 1 || e[0].More != want {
			t.Errorf("%s: %+v", text, e)
		}
	}
	if e := product.CronEntries(theirs)[0]; e.More {
		t.Errorf("%+v", e)
	}
	if e := product.CronEntries(theirs)[0]; !e.Sources() || e.Shell != "/bin/sh" {
		t.Errorf("%+v", e)
	}
	if e := product.CronEntries("SHELL=\"/bin/bash\"\n" + theirs)[0]; e.Shell != "/bin/bash" {
		t.Errorf("%+v", e)
	}
	if _, err := (&Instance{dir: "/a\nb"}).CronLine("0 4 * * *"); err == nil {
		t.Error("a root with a line break makes a line")
	}
}

func TestEditCrontab(t *testing.T) {
	in := &Instance{dir: "/opt/alation/alation"}
	line := "0 4 * * * x"
	for _, c := range []struct{ before, line, after string }{
		{"", line, line + "\n"},
		{theirs, line, theirs[:strings.Index(theirs, "0 4")] + line + "\n"},
		{theirs, "", theirs[:strings.Index(theirs, "0 4")]},
		{"# kept\n\nMAILTO=x", line, "# kept\n\nMAILTO=x\n" + line + "\n"},
		{theirs[strings.Index(theirs, "0 4"):], "", ""},
	} {
		if got := EditCrontab(c.before, in.CronEntries(c.before), c.line); got != c.after {
			t.Errorf("%q with %q is %q, want %q", c.before, c.line, got, c.after)
		}
	}
}
