// Package catalog remembers backup sets: all that one backup_all made, tied by one recovery point.
//
// A set is one JSON object named "<id>.json", format 1, replaced as a whole each time it changes:
//
//	{"format":1, "id":"202611230012_10-0-0-147420", "run":"…", "state":"complete", "mode":"included",
//	 "pieces":[{"kind":"application","path":"…","size":n,"sha256":"…"}, {"kind":"eventbus",…}, {"kind":"postgres",…}],
//	 "recovery":{"name":"holdfast_…","postgres":[…],"files":{…},"eventbus":{…},"skew":{…}}, …}
//
// The same document travels inside the application tarball (set.json), so that a new host needs no catalogue to restore; the
// catalogue is what makes listing quick and holds the verdicts that later checks reached. docs/format/backup-set.md has
// every member.
package catalog
