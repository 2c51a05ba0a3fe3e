package web

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/catalog"
)

// metric describes one of ours: names are a promise to those who have made dashboards and alerts of them.
type metric struct {
	name, help string
	labels     []string
}

var (
	metricBuild      = metric{"holdfast_build_info", "Version of the program; always 1.", []string{"version"}}
	metricHealthy    = metric{"holdfast_healthy", "1 when /healthz answers with 200.", nil}
	metricSets       = metric{"holdfast_sets", "Backup sets in the catalogue, by state.", []string{"state"}}
	metricGoodInfo   = metric{"holdfast_last_good_set_info", "The newest good set and the run that made it; always 1.", []string{"set", "run", "mode"}}
	metricGoodTime   = metric{"holdfast_last_good_timestamp_seconds", "Time to which the component is restored from the newest good set.", []string{"component"}}
	metricGoodAge    = metric{"holdfast_last_good_age_seconds", "How long ago that was.", []string{"component"}}
	metricGoodBytes  = metric{"holdfast_last_good_size_bytes", "Stored bytes of the component in the newest good set.", []string{"component"}}
	metricGoodTook   = metric{"holdfast_last_good_duration_seconds", "How long the run of the newest good set took.", nil}
	metricVerifyTime = metric{"holdfast_last_verify_timestamp_seconds", "When a set was last verified.", nil}
	metricVerifyOK   = metric{"holdfast_last_verify_ok", "1 when that found nothing.", nil}
	metricPinned     = metric{"holdfast_sets_pinned", "Backup sets that a pin keeps.", nil}
	metricSetBytes   = metric{"holdfast_sets_size_bytes", "Stored bytes of all complete backup sets.", nil}
	metricOldest     = metric{"holdfast_oldest_good_timestamp_seconds", "When the oldest good set was made.", nil}
	metricKeepTime   = metric{"holdfast_last_retention_timestamp_seconds", "When the retention was last applied.", nil}
	metricKeepOK     = metric{"holdfast_last_retention_ok", "1 when that removed everything that was to go.", nil}
	metricKeepFreed  = metric{"holdfast_last_retention_freed_bytes", "What that freed.", nil}
	metricNext       = metric{"holdfast_job_next_run_timestamp_seconds", "When the job runs next; absent: never.", []string{"job"}}
	metricStarted    = metric{"holdfast_job_last_start_timestamp_seconds", "When the job was started last.", []string{"job"}}
	metricGoodRun    = metric{"holdfast_job_last_success_timestamp_seconds", "When the last run that did its work ended.", []string{"job"}}
	metricTook       = metric{"holdfast_job_last_duration_seconds", "How long the job's last run took, or has been taking.", []string{"job"}}
	metricRunning    = metric{"holdfast_job_running", "1 while the job runs.", []string{"job"}}
	metricRuns       = metric{"holdfast_job_runs_total", "Runs of the job since the daemon was started, by outcome.", []string{"job", "outcome"}}
	metricLag        = metric{"holdfast_copy_wal_lag_seconds", "How far the WAL on external storage is behind: time since the last complete copying began.", nil}
	metricCopied     = metric{"holdfast_copy_wal_info", "Last WAL segment on external storage; always 1.", []string{"stanza", "segment"}}
)

var metrics = []metric{metricBuild, metricHealthy, metricSets, metricGoodInfo, metricGoodTime, metricGoodAge, metricGoodBytes, metricGoodTook, metricVerifyTime, metricVerifyOK,
	metricPinned, metricSetBytes, metricOldest, metricKeepTime, metricKeepOK, metricKeepFreed,
	metricNext, metricStarted, metricGoodRun, metricTook, metricRunning, metricRuns, metricLag, metricCopied}

// collector asks for the Status at every scrape, so that nothing has to be kept up to date in between.
type collector struct {
	status func() Status
	descs  map[string]*prometheus.Desc
}

func newCollector(status func() Status) *collector {
	c := &collector{status: status, descs: map[string]*prometheus.Desc{}}
	for _, m := range metrics {
		c.descs[m.name] = prometheus.NewDesc(m.name, m.help, m.labels, nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- c.descs[m.name]
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.status()
	put := func(m metric, value float64, labels ...string) {
		kind := prometheus.GaugeValue
		if m.name == metricRuns.name {
			kind = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(c.descs[m.name], kind, value, labels...)
	}
	put(metricBuild, 1, s.Version)
	put(metricHealthy, truth(len(s.Problems) == 0))
	c.sets(&s, put)
	for i := range s.Jobs {
		c.job(&s, &s.Jobs[i], put)
	}
	if s.Copy != nil {
		put(metricLag, s.Copy.Lag.Seconds())
		for _, w := range s.Copy.Last {
			put(metricCopied, 1, w.Stanza, w.Last)
		}
	}
}

func (c *collector) sets(s *Status, put func(metric, float64, ...string)) {
	count := map[catalog.State]int{catalog.Running: 0, catalog.Publishing: 0, catalog.Complete: 0, catalog.Failed: 0}
	var last catalog.Verdict
	for _, set := range s.Sets {
		count[set.State]++
		for _, v := range set.Verdicts {
			if v.Check == "verify" && v.At.After(last.At) {
				last = v
			}
		}
	}
	for state, n := range count {
		put(metricSets, float64(n), string(state))
	}
	if !last.At.IsZero() {
		put(metricVerifyTime, seconds(last.At))
		put(metricVerifyOK, truth(last.OK))
	}
	c.kept(s, put)
	good := s.lastGood()
	if good == nil {
		return
	}
	put(metricGoodInfo, 1, good.ID, good.Run, string(good.Mode))
	put(metricGoodTook, good.Ended.Sub(good.Began).Seconds())
	for _, p := range components(good) {
		put(metricGoodTime, seconds(p.taken), p.name)
		put(metricGoodAge, s.Now.Sub(p.taken).Seconds(), p.name)
		put(metricGoodBytes, float64(p.bytes), p.name)
	}
}

// kept is what the retention has left, and did last.
func (c *collector) kept(s *Status, put func(metric, float64, ...string)) {
	pinned, size := 0, int64(0)
	var oldest *catalog.Set
	var last *catalog.Retention
	for _, set := range s.Sets {
		if set.Pinned(s.Now) {
			pinned++
		}
		if set.State == catalog.Complete {
			size += set.Size()
		}
		if oldest == nil && set.Good() {
			oldest = set
		}
		if r := set.Retention; r != nil && (last == nil || r.At.After(last.At)) {
			last = r
		}
	}
	put(metricPinned, float64(pinned))
	put(metricSetBytes, float64(size))
	if oldest != nil {
		put(metricOldest, seconds(oldest.Began))
	}
	if last != nil {
		put(metricKeepTime, seconds(last.At))
		put(metricKeepOK, truth(last.Error == ""))
		put(metricKeepFreed, float64(last.Bytes))
	}
}

func (c *collector) job(s *Status, j *Job, put func(metric, float64, ...string)) {
	put(metricRunning, truth(j.Running), j.Name)
	if !j.Next.IsZero() {
		put(metricNext, seconds(j.Next), j.Name)
	}
	for outcome, n := range j.Runs {
		put(metricRuns, float64(n), j.Name, outcome)
	}
	if j.Good != nil {
		put(metricGoodRun, seconds(j.Good.Ended), j.Name)
	}
	if r := j.Last; r != nil {
		put(metricStarted, seconds(r.Started), j.Name)
		end := r.Ended
		if end.IsZero() {
			end = s.Now
		}
		put(metricTook, end.Sub(r.Started).Seconds(), j.Name)
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
