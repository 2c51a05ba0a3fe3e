package main

import (
	"strings"
	"testing"
)

const stream = `{"Action":"start","Package":"p/a"}
{"Action":"run","Package":"p/a","Test":"TestGood"}
{"Action":"output","Package":"p/a","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"output","Package":"p/a","Test":"TestGood","Output":"    noise of a good test\n"}
{"Action":"pass","Package":"p/a","Test":"TestGood","Elapsed":3.2}
{"Action":"run","Package":"p/a","Test":"TestBad"}
{"Action":"run","Package":"p/a","Test":"TestBad/sub"}
{"Action":"output","Package":"p/a","Test":"TestBad/sub","Output":"    a_test.go:7: three is not four\n"}
{"Action":"fail","Package":"p/a","Test":"TestBad/sub","Elapsed":9}
{"Action":"output","Package":"p/a","Test":"TestBad","Output":"--- FAIL: TestBad (12.00s)\n"}
{"Action":"fail","Package":"p/a","Test":"TestBad","Elapsed":12}
{"Action":"output","Package":"p/a","Output":"FAIL\n"}
{"Action":"output","Package":"p/a","Output":"FAIL\tp/a\t15.300s\n"}
{"Action":"fail","Package":"p/a","Elapsed":15.3}
{"Action":"start","Package":"p/b"}
{"Action":"output","Package":"p/b","Output":"PASS\n"}
{"Action":"output","Package":"p/b","Output":"ok  \tp/b\t0.010s\n"}
{"Action":"pass","Package":"p/b","Elapsed":0.01}
`

func TestReport(t *testing.T) {
	var out strings.Builder
	failed, err := report(strings.NewReader(stream), &out, 1)
	if err != nil || !failed {
		t.Fatalf("failed %v, error %v; a test of the stream failed", failed, err)
	}
	for _, want := range []string{"p/a: TestBad/sub\n    a_test.go:7: three is not four\n", "--- FAIL: TestBad (12.00s)\n", "FAIL\tp/a\t15.300s\n", "ok  \tp/b\t0.010s\n", "slowest:    12 s  p/a TestBad\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, out.String())
		}
	}
	for _, no := range []string{"noise", "TestGood", "TestBad/sub\n--- ", "PASS"} {
		if strings.Contains(out.String(), no) {
			t.Errorf("%q is in:\n%s", no, out.String())
		}
	}
}

func TestReportOfTrouble(t *testing.T) {
	for name, in := range map[string]string{
		"a build that failed": `{"ImportPath":"p/c","Action":"build-output","Output":"c.go:1: WORD\n"}` + "\n" + `{"ImportPath":"p/c","Action":"build-fail"}` + "\n",
		"a process that died": `{"Action":"run","Package":"p/a","Test":"TestX"}` + "\n" + `{"Action":"output","Package":"p/a","Test":"TestX","Output":"WORD\n"}` + "\n",
	} {
		var out strings.Builder
		failed, err := report(strings.NewReader(in), &out, 5)
		if err != nil || !failed || !strings.Contains(out.String(), "WORD") {
			t.Errorf("%s: failed %v, error %v, output %q", name, failed, err, out.String())
		}
	}
	var out strings.Builder
	if failed, err := report(strings.NewReader("go: no such module\n"), &out, 5); failed || err != nil || out.String() != "go: no such module\n" {
		t.Errorf("a line of another program: failed %v, error %v, %q", failed, err, out.String())
	}
}
