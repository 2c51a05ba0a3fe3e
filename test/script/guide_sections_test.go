package script

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// guideSections are the sections of the user guide of pgBackRest 2.59.1, which has all of 2.45 and more, and the tests that go through
// them; empty: there is nothing to run.
const guideSections = `
introduction
concept
concept/backup
concept/restore
concept/wal
concept/encryption
upgrading
build
installation
quickstart/setup-demo-cluster
quickstart/configure-stanza              TestConfiguration
quickstart/create-repository             TestQuickStart
quickstart/configure-archiving           TestQuickStart TestConfiguration
quickstart/retention                     TestRetention
quickstart/configure-encryption          TestEncryption
quickstart/create-stanza                 TestQuickStart
quickstart/check-configuration           TestQuickStart
quickstart/performance-tuning            TestBackupTypes TestSeveralStanzas TestAsyncArchiving
quickstart/perform-backup                TestQuickStart TestBackupTypes
quickstart/schedule-backup
quickstart/backup-info                   TestQuickStart TestBackupTypes
quickstart/perform-restore               TestQuickStart
monitor/postgresql                       TestSeveralStanzas
monitor/jq                               TestSeveralStanzas
backup/bundle                            TestBackupTypes
backup/block                             TestBlockIncremental TestBlockOptions
backup/annotate                          TestSeveralStanzas TestHousekeeping
retention/full                           TestRetention TestHardLinksAndTime
retention/diff                           TestRetention
retention/archive                        TestArchiveRetention
restore/ownership                        TestRestoreOptions
restore/option-delta                     TestDeltaRestore
restore/option-db-include                TestTablespacesAndDatabases
pitr                                     TestPointInTime TestTimelines
delete-stanza                            TestHousekeeping TestSeveralStanzas
multi-repo                               TestSeveralRepositories TestEachRepositoryForItself
azure-support                            in internal/cli and test/interop
s3-support                               TestAnEarlierTime
sftp-support                             in internal/cli and test/interop
gcs-support                              in internal/cli and test/interop
repo-target-time                         TestAnEarlierTime
repo-host/install
repo-host/setup-ssh
repo-host/config                         TestSeveralStanzas
repo-host/setup-tls                      TestSeveralStanzas
repo-host/stanza-create                  TestSeveralStanzas
repo-host/perform-backup                 TestSeveralStanzas
repo-host/perform-restore                TestSeveralStanzas
parallel-backup-restore                  TestSeveralStanzas
start-stop                               TestSeveralStanzas TestHousekeeping
replication/installation
replication/setup-ssh
replication/hot-standby                  TestReplication
replication/streaming                    TestReplication TestStandby
multi-stanza/installation
multi-stanza/setup-ssh
multi-stanza/configuration               TestSeveralStanzas
multi-stanza/setup-demo-cluster          TestSeveralStanzas
multi-stanza/create-stanza               TestSeveralStanzas
async-archiving/async-archive-push       TestAsyncArchiving
async-archiving/async-archive-get        TestAsyncArchiving
standby-backup                           TestStandby TestReplication
upgrade-stanza                           TestStanzaUpgrade
`

// TestGuideSections: a test that the list names is there.
func TestGuideSections(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				there[fn.Name.Name] = true
			}
		}
	}
	held := 0
	for line := range strings.Lines(guideSections) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		held++
		if words[1] == "in" {
			continue
		}
		for _, name := range words[1:] {
			if !there[name] {
				t.Errorf("%s: there is no %s", words[0], name)
			}
		}
	}
	t.Logf("%d sections of the guide are run", held)
}
