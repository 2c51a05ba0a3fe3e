package web

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"holdfast/internal/catalog"
)

var now = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func sample() Status {
	taken := catalog.Interval{From: now.Add(-2 * time.Hour), To: now.Add(-2 * time.Hour)}
	good := &catalog.Set{ID: "202611270400_1-2-3-4", Run: "7-0badcafe", State: catalog.Complete, Mode: catalog.Included, Began: now.Add(-3 * time.Hour), Ended: now.Add(-110 * time.Minute),
		Pieces: []catalog.Piece{{Kind: catalog.Application, Size: 1000}, {Kind: catalog.EventBus, Size: 10}},
		Recovery: &catalog.Recovery{Postgres: []catalog.PostgresPoint{{Stanza: "rosemeta", RepoBytes: 500, Taken: taken}}, Files: &catalog.FilesPoint{Taken: taken},
			EventBus: &catalog.BusPoint{Taken: taken}},
		Verdicts: []catalog.Verdict{{Check: "verify", OK: true, At: now.Add(-time.Hour)}}, Retention: &catalog.Retention{At: now, Bytes: 2048, Error: "e"}}
	damaged := &catalog.Set{Pin: &catalog.Pin{Reason: "evidence"}, ID: "202611270500_1-2-3-4", State: catalog.Complete, Verdicts: []catalog.Verdict{{Check: "verify", At: now.Add(-90 * time.Minute)}}}
	failed := &catalog.Set{ID: "202611270600_1-2-3-4", State: catalog.Failed}
	return Status{Now: now, Version: "0.1", Sets: []*catalog.Set{good, damaged, failed}, Jobs: []Job{
		{Name: "backup", Next: now.Add(16 * time.Hour), Last: &Run{ID: "7-0badcafe", Started: now.Add(-3 * time.Hour), Ended: now.Add(-2 * time.Hour)}, Good: &Run{Ended: now.Add(-2 * time.Hour)}, Runs: map[string]int{"done": 3}},
		{Name: "copy", Running: true, Last: &Run{Started: now.Add(-time.Minute)}},
	}, Copy: &Copy{Lag: 90 * time.Second, Last: []catalog.CopiedWAL{{Stanza: "rosemeta", Last: "000000010000000000000009"}}}}
}

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	r := httptest.NewRecorder()
	h.ServeHTTP(r, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return r.Code, r.Body.String()
}

func TestMetrics(t *testing.T) {
	code, body := get(t, Handler(sample), "/metrics")
	if code != http.StatusOK {
		t.Fatal(code, body)
	}
	oldest := strconv.FormatFloat(seconds(now.Add(-3*time.Hour)), 'g', -1, 64)
	for _, want := range []string{
		`holdfast_last_good_set_info{mode="included",run="7-0badcafe",set="202611270400_1-2-3-4"} 1`,
		`holdfast_last_good_age_seconds{component="postgres/rosemeta"} 7200`, `holdfast_last_good_size_bytes{component="postgres/rosemeta"} 500`,
		`holdfast_last_good_size_bytes{component="files"} 1000`, `holdfast_last_good_size_bytes{component="eventbus"} 10`, `holdfast_last_good_duration_seconds 4200`,
		`holdfast_sets_pinned 1`, `holdfast_last_retention_ok 0`, `holdfast_last_retention_freed_bytes 2048`, `holdfast_oldest_good_timestamp_seconds ` + oldest,
		`holdfast_sets{state="complete"} 2`, `holdfast_sets{state="failed"} 1`, `holdfast_sets{state="running"} 0`, `holdfast_last_verify_ok 1`,
		`holdfast_job_next_run_timestamp_seconds{job="backup"} 1.7958384e+09`, `holdfast_job_last_duration_seconds{job="backup"} 3600`, `holdfast_job_last_duration_seconds{job="copy"} 60`,
		`holdfast_job_running{job="copy"} 1`, `holdfast_job_runs_total{job="backup",outcome="done"} 3`, `holdfast_copy_wal_lag_seconds 90`,
		`holdfast_copy_wal_info{segment="000000010000000000000009",stanza="rosemeta"} 1`, `holdfast_healthy 1`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("want %s", want)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
	problems, err := promlint.New(bytes.NewBufferString(body)).Lint() // parses, and knows the rules for names
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if strings.Contains(body, "go_") {
		t.Error("metrics of the process, which nobody asked for")
	}
}

// TestMetricsOfNothing: an instance without a set, whose jobs have never run.
func TestMetricsOfNothing(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(newCollector(func() Status { return Status{Now: now, Jobs: []Job{{Name: "backup"}}} })); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if strings.Contains(f.GetName(), "last_good") || strings.Contains(f.GetName(), "next_run") {
			t.Errorf("%s is there", f.GetName())
		}
	}
}

func TestHealth(t *testing.T) {
	well := true
	h := Handler(func() Status {
		s := sample()
		if !well {
			s.Problems = []string{"the last backup failed"}
		}
		return s
	})
	if code, body := get(t, h, "/healthz"); code != http.StatusOK || !json.Valid([]byte(body)) || !strings.Contains(body, `"ok": true`) {
		t.Error(code, body)
	}
	well = false
	if code, body := get(t, h, "/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "the last backup failed") {
		t.Error(code, body)
	}
	if code, _ := get(t, h, "/"); code != http.StatusNotFound {
		t.Error(code)
	}
}

func TestServer(t *testing.T) {
	s, err := Listen("127.0.0.1:0", sample)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Listen("256.0.0.1:1", sample); err == nil {
		t.Error("listening nowhere")
	}
	srv := httptest.NewServer(Handler(sample))
	defer srv.Close()
	res, err := srv.Client().Get(srv.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(b), "holdfast_sets") {
		t.Error(err, string(b))
	}
}
