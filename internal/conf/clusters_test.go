package conf

import (
	"slices"
	"strings"
	"testing"
)

// TestClustersOnRDS: both forms of an entry for a DB instance, what is filled in, and what is refused.
func TestClustersOnRDS(t *testing.T) {
	for text, want := range map[string]string{
		"a:kind=rds,id=My-DB":                                  "a:kind=rds,id=my-db,port=5432",
		"a:kind=rds,id=db1,region=eu-west-1,host=h,user=u":     "a:kind=rds,id=db1,region=eu-west-1,host=h,port=5432,user=u",
		`[{"stanza":"a","kind":"rds","id":"db1","port":5433}]`: "a:kind=rds,id=db1,port=5433",
		"a:kind=local,data=/x;b:kind=rds,id=x":                 "a:data=/x,host=/tmp,port=5432,user=alation;b:kind=rds,id=x,port=5432",
		"a:kind=rds,id=x,user=u;b:kind=rds,id=x,region=us-a-1": "a:kind=rds,id=x,port=5432,user=u;b:kind=rds,id=x,region=us-a-1,port=5432",
	} {
		got, err := ParseClusters(text)
		if err != nil || FormatClusters(got) != want {
			t.Errorf("%s: %s %v", text, FormatClusters(got), err)
			continue
		}
		again, err := ParseClusters(FormatClusters(got))
		if err != nil || !slices.Equal(again, got) {
			t.Errorf("%s: %+v %v", text, again, err)
		}
		if again, err = ParseClusters(formatClustersJSON(got)); err != nil || !slices.Equal(again, got) {
			t.Errorf("%s as JSON: %+v %v", text, again, err)
		}
	}
	for text, word := range map[string]string{
		"a:kind=rds": "id is not", "a:kind=rds,id=1x": "id is not", "a:kind=rds,id=a--b": "id is not", "a:kind=rds,id=a-": "id is not",
		"a:kind=rds,id=" + strings.Repeat("a", 64): "id is not", "a:kind=rds,id=x,data=/x": "no data", "a:kind=rds,id=x,bin=/x": "no bin",
		"a:kind=rds,id=x,region=Europe": "region is not", "a:kind=rds,id=x,region=e-1/x": "region is not", "a:kind=rds,id=x,host=/tmp": "not a directory",
		"a:kind=aurora,id=x": "not supported", "a:kind=rds-cluster,id=x": "not supported", "a:kind=azure,id=x": "not local or rds", "a:data=/x,id=x": "go with kind=rds",
		"a:data=/x,region=eu-west-1": "go with kind=rds", "a:kind=rds,id=x;b:kind=rds,id=X": "twice", "a:kind=rds,id=x;a:kind=rds,id=y": "twice", "a:kind=rds,id=x,port=70000": "port",
	} {
		if _, err := ParseClusters(text); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: want %q, got %v", text, word, err)
		}
	}
}
