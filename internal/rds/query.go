package rds

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// The API of Amazon RDS is a form that is posted and XML that comes back. The seven requests are made here, on the SDK's
// credentials, signatures and rules of repetition: its package for the service makes 1.4 MB of tables at every start of the
// program, archive-push included, more than all other packages together.

const (
	apiVersion = "2014-10-31"
	maxAnswer  = 64 << 20        // bytes
	skewMax    = 4 * time.Minute // between the clocks, before requests are signed with the service's
)

// url is the address of the service.
func (o *Options) url() string {
	if o.Endpoint != "" {
		return strings.TrimSuffix(o.Endpoint, "/") + "/"
	}
	domain := "amazonaws.com"
	if strings.HasPrefix(o.Region, "cn-") {
		domain += ".cn"
	}
	return "https://rds." + o.Region + "." + domain + "/"
}

// answer is what an answer says besides its content.
type answer struct{ ahead time.Duration } // the service's clock less ours, told in whole seconds; 0: it is not told

// query makes one request, and again while its failure may pass, and decodes the answer into out.
func (c *Client) query(ctx context.Context, action string, form url.Values, out any) (answer, error) {
	form.Set("Action", action)
	form.Set("Version", apiVersion)
	for try := 1; ; try++ {
		a, err := c.once(ctx, form.Encode(), out)
		if err == nil {
			return a, nil
		}
		if cerr := ctx.Err(); cerr != nil {
			return a, fmt.Errorf("%w: %w", cerr, err)
		}
		clock := c.setClock(a, err)
		if try >= c.o.Tries || !clock && !c.retryer.IsErrorRetryable(err) {
			return a, err
		}
		pause, err := c.retryer.RetryDelay(try, err)
		if err != nil {
			return a, err
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return a, ctx.Err()
		case <-t.C:
		}
	}
}

// setClock has requests signed with the service's time when ours was refused. It says whether that is new.
func (c *Client) setClock(a answer, err error) bool {
	switch code(err) {
	case "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "InvalidSignatureException", "AuthFailure":
	default:
		return false
	}
	was := time.Duration(c.clock.Load())
	if (a.ahead - was).Abs() < skewMax {
		return false
	}
	c.clock.Store(int64(a.ahead))
	return true
}

// once makes one request.
func (c *Client) once(ctx context.Context, body string, out any) (a answer, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.o.url(), strings.NewReader(body))
	if err != nil {
		return a, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	creds, err := c.creds.Retrieve(ctx)
	if err != nil {
		return a, &credentialsError{err}
	}
	sum := sha256.Sum256([]byte(body))
	if err := c.signer.SignHTTP(ctx, creds, req, hex.EncodeToString(sum[:]), "rds", c.o.Region, time.Now().Add(time.Duration(c.clock.Load()))); err != nil {
		return a, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return a, &smithyhttp.RequestSendError{Err: err}
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	_ = resp.Body.Close() // read to its end, or broken
	if err != nil {
		return a, &smithyhttp.RequestSendError{Err: fmt.Errorf("the answer broke off: %w", err)}
	}
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		a.ahead = time.Until(at)
	}
	if resp.StatusCode != http.StatusOK {
		return a, refusal(resp, text)
	}
	if err := xml.NewDecoder(bytes.NewReader(text)).Decode(out); err != nil {
		return a, fmt.Errorf("the answer can't be read: %w", err)
	}
	return a, nil
}

// refusal is the error that an answer tells.
func refusal(resp *http.Response, text []byte) error {
	var e struct {
		Code    string `xml:"Error>Code"`
		Message string `xml:"Error>Message"`
		Request string `xml:"RequestId"`
	}
	var said error
	if err := xml.Unmarshal(text, &e); err == nil && e.Code != "" {
		said = &smithy.GenericAPIError{Code: e.Code, Message: e.Message}
	} else {
		said = fmt.Errorf("HTTP %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	return &awshttp.ResponseError{RequestID: e.Request, ResponseError: &smithyhttp.ResponseError{Response: &smithyhttp.Response{Response: resp}, Err: said}}
}

// put sets a member of a form unless it is empty.
func put(form url.Values, name, value string) {
	if value != "" {
		form.Set(name, value)
	}
}

// putTags adds tags to a form.
func putTags(form url.Values, tags map[string]string) {
	for i, k := range slices.Sorted(maps.Keys(tags)) {
		form.Set(fmt.Sprintf("Tags.Tag.%d.Key", i+1), k)
		form.Set(fmt.Sprintf("Tags.Tag.%d.Value", i+1), TagValue(tags[k]))
	}
}

// xmlTime is a time as the service writes it; empty: zero.
type xmlTime struct{ time.Time }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *xmlTime) UnmarshalText(b []byte) error {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	at, err := time.Parse(time.RFC3339, string(bytes.TrimSpace(b)))
	t.Time = at
	return err
}

// xmlTags are tags as the service writes them.
type xmlTags []struct{ Key, Value string }

func (list xmlTags) tags() map[string]string {
	m := map[string]string{}
	for _, t := range list {
		m[t.Key] = t.Value
	}
	return m
}

// xmlSnapshot is a snapshot as the service writes it.
type xmlSnapshot struct {
	DBSnapshotIdentifier    string
	DBSnapshotArn           string
	DBInstanceIdentifier    string
	Status                  string
	PercentProgress         int
	Engine                  string
	EngineVersion           string
	AllocatedStorage        int
	FullSnapshotSizeInBytes int64
	Encrypted               bool
	KmsKeyId                string
	SnapshotCreateTime      xmlTime
	SnapshotDatabaseTime    xmlTime
	Tags                    xmlTags `xml:"TagList>Tag"`
}

func (x *xmlSnapshot) snapshot(a answer) Snapshot {
	return Snapshot{Name: x.DBSnapshotIdentifier, ARN: x.DBSnapshotArn, Instance: x.DBInstanceIdentifier, State: x.Status, Progress: x.PercentProgress, Engine: x.Engine,
		EngineVersion: x.EngineVersion, StorageGiB: x.AllocatedStorage, Bytes: x.FullSnapshotSizeInBytes, Encrypted: x.Encrypted, KMSKey: x.KmsKeyId,
		Taken: x.SnapshotCreateTime.Time, LastChange: x.SnapshotDatabaseTime.Time, Tags: x.Tags.tags(), ClockAhead: a.ahead}
}

// xmlInstance is a DB instance as the service writes it.
type xmlInstance struct {
	DBInstanceIdentifier  string
	DBInstanceArn         string
	DBInstanceStatus      string
	DBInstanceClass       string
	Engine                string
	EngineVersion         string
	AllocatedStorage      int
	StorageType           string
	StorageEncrypted      bool
	KmsKeyId              string
	MultiAZ               bool
	PubliclyAccessible    bool
	DBClusterIdentifier   string
	BackupRetentionPeriod int
	LatestRestorableTime  xmlTime
	Host                  string   `xml:"Endpoint>Address"`
	Port                  int      `xml:"Endpoint>Port"`
	SubnetGroup           string   `xml:"DBSubnetGroup>DBSubnetGroupName"`
	SecurityGroups        []string `xml:"VpcSecurityGroups>VpcSecurityGroupMembership>VpcSecurityGroupId"`
	ParameterGroups       []string `xml:"DBParameterGroups>DBParameterGroup>DBParameterGroupName"`
	OptionGroups          []string `xml:"OptionGroupMemberships>OptionGroupMembership>OptionGroupName"`
	Tags                  xmlTags  `xml:"TagList>Tag"`
}

func (x *xmlInstance) instance() *Instance {
	in := &Instance{Name: x.DBInstanceIdentifier, ARN: x.DBInstanceArn, State: x.DBInstanceStatus, Engine: x.Engine, EngineVersion: x.EngineVersion, Class: x.DBInstanceClass,
		StorageGiB: x.AllocatedStorage, StorageType: x.StorageType, Encrypted: x.StorageEncrypted, KMSKey: x.KmsKeyId, Host: x.Host, Port: x.Port, SubnetGroup: x.SubnetGroup,
		SecurityGroups: x.SecurityGroups, MultiAZ: x.MultiAZ, Public: x.PubliclyAccessible, Cluster: x.DBClusterIdentifier, Retention: x.BackupRetentionPeriod,
		Latest: x.LatestRestorableTime.Time, Tags: x.Tags.tags()}
	if len(x.ParameterGroups) > 0 {
		in.ParameterGroup = x.ParameterGroups[0]
	}
	if len(x.OptionGroups) > 0 {
		in.OptionGroup = x.OptionGroups[0]
	}
	return in
}

// The answers.
type (
	describeSnapshots struct {
		List   []xmlSnapshot `xml:"DescribeDBSnapshotsResult>DBSnapshots>DBSnapshot"`
		Marker string        `xml:"DescribeDBSnapshotsResult>Marker"`
	}
	createSnapshot struct {
		Snapshot xmlSnapshot `xml:"CreateDBSnapshotResult>DBSnapshot"`
	}
	describeInstances struct {
		List []xmlInstance `xml:"DescribeDBInstancesResult>DBInstances>DBInstance"`
	}
	restoredSnapshot struct {
		Instance xmlInstance `xml:"RestoreDBInstanceFromDBSnapshotResult>DBInstance"`
	}
	restoredTime struct {
		Instance xmlInstance `xml:"RestoreDBInstanceToPointInTimeResult>DBInstance"`
	}
	nothing struct{}
)
