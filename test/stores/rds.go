package stores

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/rds"
	"github.com/aws/aws-sdk-go-v2/service/rds/types"
)

// RDS is moto's server, which stands in for the API of Amazon RDS, and a front that makes it more like the service: what is
// begun takes a while, an instance can be busy, listings come in pages, answers get lost. The fields are for tests to set
// between calls.
type RDS struct {
	Endpoint string // https://127.0.0.1:port
	CAFile   string
	Region   string
	Key      string
	Secret   string

	mu      sync.Mutex
	back    string         // address of moto's server
	api     *rds.Client    // past the front
	looks   map[string]int // how often something was looked at since it was made
	counts  map[string]int // by action
	trouble func(action string, nth int, form url.Values) Fault
	o       RDSManner
}

// RDSManner is how the service behaves.
type RDSManner struct {
	Late    int               // how many looks at a new snapshot or instance say that it is being created
	Undated int               // how many of them tell no time, no progress
	Fail    []string          // snapshots and instances that fail in the end, by a part of the name
	Busy    map[string]int    // how often an instance says that it is being backed up
	State   map[string]string // of an instance, in place of available
	Page    int               // how many snapshots a page has; 0: all
	Address map[string]string // host:port of instances, in place of the invented one; "": of all others
	Ahead   time.Duration     // of the service's clock
	Cluster map[string]string // DB cluster that an instance belongs to
	Window  map[string]string // latest restorable time of an instance, RFC 3339
}

// Throttled, beside the faults of a Front and of a Proxy: 400 Throttling; the server never sees it.
const Throttled Fault = 1000

// StartRDS starts moto's server and the front; both end with the test.
func StartRDS(t testing.TB) *RDS {
	t.Helper()
	name := program(t, "moto/bin/python")
	s := &RDS{Region: "eu-west-1", Key: "AKIAHOLDFASTTEST", Secret: "planted-rds-secret-9c41", looks: map[string]int{}, counts: map[string]int{}}
	var last error
	for range 3 { // a port found free may be taken before the server has it
		port := FreePort(t)
		s.back = "127.0.0.1:" + strconv.Itoa(port)
		cmd := command(t, []string{"MOTO_ACCOUNT_ID=123456789012"}, name, "-m", "moto.server", "-H", "127.0.0.1", "-p", strconv.Itoa(port))
		if _, last = run(t, cmd, func(ctx context.Context) error { return listening(ctx, port) }); last == nil {
			break
		}
	}
	if last != nil {
		t.Fatal(last)
	}
	s.api = rds.New(rds.Options{Region: s.Region, BaseEndpoint: aws.String("http://" + s.back), Credentials: credentials.NewStaticCredentialsProvider(s.Key, s.Secret, "")})
	ca := NewCA(t)
	s.CAFile = ca.File
	front := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	pair, err := tls.LoadX509KeyPair(ca.Cert, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	front.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	front.StartTLS()
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
	})
	s.Endpoint = "https://127.0.0.1:" + strconv.Itoa(front.Listener.Addr().(*net.TCPAddr).Port)
	return s
}

// Manner says how the service behaves from now on; what was looked at and counted is forgotten.
func (s *RDS) Manner(m RDSManner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.o, s.looks, s.counts = m, map[string]int{}, map[string]int{}
}

// Trouble makes judge decide on every request from now on, and all counts start anew. nil: none.
func (s *RDS) Trouble(judge func(action string, nth int, form url.Values) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble, s.counts = judge, map[string]int{}
}

// Count is how often an action was asked for since Trouble or Manner.
func (s *RDS) Count(action string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[action]
}

// Make makes a DB instance of PostgreSQL.
func (s *RDS) Make(t testing.TB, name string) {
	t.Helper()
	_, err := s.api.CreateDBInstance(t.Context(), &rds.CreateDBInstanceInput{DBInstanceIdentifier: &name, Engine: aws.String("postgres"), EngineVersion: aws.String("15.4"),
		DBInstanceClass: aws.String("db.t3.medium"), AllocatedStorage: aws.Int32(20), MasterUsername: aws.String("alation"), MasterUserPassword: aws.String("moto-never-looks"),
		BackupRetentionPeriod: aws.Int32(7), VpcSecurityGroupIds: []string{"sg-0123"}})
	if err != nil {
		t.Fatal(err)
	}
}

// Instances lists the DB instances' names, sorted, as the server has them.
func (s *RDS) Instances(t testing.TB) (names []string) {
	t.Helper()
	out, err := s.api.DescribeDBInstances(t.Context(), &rds.DescribeDBInstancesInput{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range out.DBInstances {
		names = append(names, aws.ToString(i.DBInstanceIdentifier))
	}
	slices.Sort(names)
	return names
}

// Snapshots are the manual snapshots by their names, as the server has them.
func (s *RDS) Snapshots(t testing.TB) map[string]types.DBSnapshot {
	t.Helper()
	out, err := s.api.DescribeDBSnapshots(t.Context(), &rds.DescribeDBSnapshotsInput{SnapshotType: aws.String("manual")})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]types.DBSnapshot{}
	for _, d := range out.DBSnapshots {
		all[aws.ToString(d.DBSnapshotIdentifier)] = d
	}
	return all
}

// API is a client past the front, for what tests do behind the program's back.
func (s *RDS) API() *rds.Client { return s.api }

func (s *RDS) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		hangUp(w)
		return
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		s.refuse(w, http.StatusBadRequest, "MalformedQueryString")
		return
	}
	action := form.Get("Action")
	s.mu.Lock()
	s.counts[action]++
	what := None
	if s.trouble != nil {
		what = s.trouble(action, s.counts[action], form)
	}
	busy := action == "CreateDBSnapshot" && s.o.Busy[form.Get("DBInstanceIdentifier")] > 0
	s.mu.Unlock()
	switch {
	case what == Throttled:
		s.refuse(w, http.StatusBadRequest, "Throttling")
		return
	case what == Busy:
		s.refuse(w, http.StatusServiceUnavailable, "ServiceUnavailable")
		return
	case what == Fail:
		s.refuse(w, http.StatusInternalServerError, "InternalFailure")
		return
	case what == Denied:
		s.refuse(w, http.StatusForbidden, "AccessDenied")
		return
	case what == Expired:
		s.refuse(w, http.StatusForbidden, "ExpiredToken")
		return
	case busy:
		s.refuse(w, http.StatusBadRequest, "InvalidDBInstanceState")
		return
	}
	s.pass(w, r, form, body, what)
}

// refuse answers in the service's place.
func (s *RDS) refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<ErrorResponse xmlns="http://rds.amazonaws.com/doc/2014-10-31/"><Error><Type>Sender</Type><Code>%s</Code><Message>by the test</Message></Error><RequestId>test</RequestId></ErrorResponse>`, code)
}

// pass asks the server, and gives its answer on in the service's manner.
func (s *RDS) pass(w http.ResponseWriter, r *http.Request, form url.Values, body []byte, what Fault) {
	out, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, "http://"+s.back+"/", bytes.NewReader(body)) // what has been sent is done, whether the client waits or not
	if err != nil {
		hangUp(w)
		return
	}
	out.Header = r.Header.Clone()
	resp, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		hangUp(w)
		return
	}
	answer, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // read to its end
	if err != nil || what == Lost {
		hangUp(w)
		return
	}
	s.mu.Lock()
	text := s.page(form, s.dress(form.Get("Action"), string(answer)))
	ahead := s.o.Ahead
	s.mu.Unlock()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
	if what == CutDown {
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		_, _ = io.WriteString(w, text[:len(text)/2])
		_ = http.NewResponseController(w).Flush() // the client is to have it
		hangUp(w)
		return
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.WriteString(w, text) // a client that went away is the client's business
}

var (
	snapshotBlock = regexp.MustCompile(`(?s)<DBSnapshot>.*?</DBSnapshot>`)
	instanceBlock = regexp.MustCompile(`(?s)<DBInstance>.*?</DBInstance>`)
)

// element is the content of the first element of a name.
func element(block, name string) string {
	_, rest, _ := strings.Cut(block, "<"+name+">")
	text, _, _ := strings.Cut(rest, "</"+name+">")
	return text
}

// with sets the content of the first element of a name, which is added if it is not there.
func with(block, name, text string) string {
	start, rest, found := strings.Cut(block, "<"+name+">")
	if !found {
		i := strings.LastIndex(block, "</")
		return block[:i] + "<" + name + ">" + text + "</" + name + ">" + block[i:]
	}
	_, end, _ := strings.Cut(rest, "</"+name+">")
	return start + "<" + name + ">" + text + "</" + name + ">" + end
}

// without drops the first element of a name.
func without(block, name string) string {
	return strings.Replace(block, "<"+name+">"+element(block, name)+"</"+name+">", "", 1)
}

// dress makes the server's answer the service's.
func (s *RDS) dress(action, text string) string {
	text = snapshotBlock.ReplaceAllStringFunc(text, func(b string) string {
		return s.snapshot(action, b)
	})
	return instanceBlock.ReplaceAllStringFunc(text, func(b string) string { return s.instance(action, b) })
}

func (s *RDS) fails(name string) bool {
	return slices.ContainsFunc(s.o.Fail, func(part string) bool { return strings.Contains(name, part) })
}

func (s *RDS) snapshot(action, b string) string {
	name := element(b, "DBSnapshotIdentifier")
	seen := s.looks["snapshot "+name]
	if action == "DescribeDBSnapshots" {
		s.looks["snapshot "+name]++
	}
	if s.o.Ahead != 0 {
		if at, err := time.Parse(time.RFC3339, element(b, "SnapshotCreateTime")); err == nil {
			b = with(b, "SnapshotCreateTime", at.Add(s.o.Ahead).Format("2006-01-02T15:04:05.000Z"))
		}
	}
	switch {
	case action == "CreateDBSnapshot" || seen < s.o.Late:
		b = with(with(b, "Status", "creating"), "PercentProgress", "10")
		if action == "CreateDBSnapshot" || seen < s.o.Undated {
			b = with(without(b, "SnapshotCreateTime"), "PercentProgress", "0")
		}
	case s.fails(name):
		b = with(b, "Status", "failed")
	}
	return b
}

func (s *RDS) instance(action, b string) string {
	name := element(b, "DBInstanceIdentifier")
	seen := s.looks["instance "+name]
	if action == "DescribeDBInstances" {
		s.looks["instance "+name]++
	}
	made := strings.Contains(b, "holdfast:set")
	address, own := s.o.Address[name]
	if !own {
		address = s.o.Address[""]
	}
	switch {
	case s.o.State[name] != "":
		b = with(b, "DBInstanceStatus", s.o.State[name])
	case s.o.Busy[name] > 0:
		s.o.Busy[name]--
		b = with(b, "DBInstanceStatus", "backing-up")
	case made && (action != "DescribeDBInstances" || seen < s.o.Late):
		b = without(with(b, "DBInstanceStatus", "creating"), "Endpoint")
		address = ""
	case made && s.fails(name):
		b = with(b, "DBInstanceStatus", "failed")
	}
	if host, port, err := net.SplitHostPort(address); err == nil {
		b = with(b, "Endpoint", "<Address>"+host+"</Address><Port>"+port+"</Port>")
	}
	if c := s.o.Cluster[name]; c != "" {
		b = with(b, "DBClusterIdentifier", c)
	}
	if w := s.o.Window[name]; w != "" {
		b = with(b, "LatestRestorableTime", w)
	}
	return b
}

// page cuts a listing of snapshots into pages; the marker is the number of the first.
func (s *RDS) page(form url.Values, text string) string {
	blocks := snapshotBlock.FindAllString(text, -1)
	if form.Get("Action") != "DescribeDBSnapshots" || s.o.Page == 0 || form.Get("DBSnapshotIdentifier") != "" || len(blocks) == 0 {
		return text
	}
	first, _ := strconv.Atoi(form.Get("Marker")) // without one it is the beginning
	last := min(first+s.o.Page, len(blocks))
	list := strings.Join(blocks[min(first, last):last], "")
	marker := ""
	if last < len(blocks) {
		marker = "<Marker>" + strconv.Itoa(last) + "</Marker>"
	}
	start, _, _ := strings.Cut(text, "<DBSnapshots>")
	_, end, _ := strings.Cut(text, "</DBSnapshots>")
	return start + "<DBSnapshots>" + list + "</DBSnapshots>" + marker + end
}
