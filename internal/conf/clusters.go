package conf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Cluster is one PostgreSQL cluster of the application.
type Cluster struct {
	Stanza  string `json:"stanza"`         // its name in the repository
	DataDir string `json:"data,omitempty"` // seen from the instance's root
	Host    string `json:"host,omitempty"` // socket directory seen from the instance's root, or host name
	Port    int    `json:"port,omitempty"`
	User    string `json:"user,omitempty"` // PostgreSQL role
	BinDir  string `json:"bin,omitempty"`  // seen from the instance's root; "" = found by PostgreSQL's version

	// Of a DB instance of Amazon RDS. It has no data directory; without Host its own address counts, without User it is not
	// asked by SQL.
	Kind   string `json:"kind,omitempty"` // "" = a cluster of this host; "rds"
	ID     string `json:"id,omitempty"`   // the DB instance's identifier
	Region string `json:"region,omitempty"`
}

// KindRDS is the Kind of a DB instance of Amazon RDS.
const KindRDS = "rds"

// OnRDS says whether the cluster is a DB instance of Amazon RDS.
func (c *Cluster) OnRDS() bool { return c.Kind == KindRDS }

// maxClusters bounds the list.
const maxClusters = 64

// ParseClusters reads the value of pgsql.clusters in either form, fills in the defaults (host /tmp, port 5432, user
// alation; for kind rds only port) and refuses names, directories and ports that cannot be, and two clusters with one stanza or one data
// directory. Errors are reasons for an operator.
func ParseClusters(text string) ([]Cluster, error) {
	text = strings.TrimSpace(text)
	var clusters []Cluster
	var err error
	if strings.HasPrefix(text, "[") {
		clusters, err = parseClustersJSON(text)
	} else {
		clusters, err = parseClustersCompact(text)
	}
	if err != nil {
		return nil, err
	}
	if len(clusters) == 0 {
		return nil, errors.New("no cluster")
	}
	if len(clusters) > maxClusters {
		return nil, fmt.Errorf("more than %d clusters", maxClusters)
	}
	stanzas, dirs := map[string]bool{}, map[string]bool{}
	for i := range clusters {
		c := &clusters[i]
		if err := c.complete(); err != nil {
			return nil, fmt.Errorf("cluster %d: %w", i+1, err)
		}
		if stanzas[c.Stanza] {
			return nil, fmt.Errorf("stanza %s stands there twice", c.Stanza)
		}
		place, what := cleanPath(c.DataDir), "data directory "+c.DataDir
		if c.OnRDS() {
			place, what = c.Region+"\n"+c.ID, "DB instance "+c.ID
		}
		if dirs[place] {
			return nil, fmt.Errorf("%s stands there twice", what)
		}
		stanzas[c.Stanza], dirs[place] = true, true
	}
	return clusters, nil
}

func parseClustersJSON(text string) ([]Cluster, error) {
	dec := json.NewDecoder(bytes.NewReader([]byte(text)))
	dec.DisallowUnknownFields()
	var clusters []Cluster
	if err := dec.Decode(&clusters); err != nil {
		return nil, fmt.Errorf("not a JSON list of clusters: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("something follows the JSON list")
	}
	return clusters, nil
}

func parseClustersCompact(text string) ([]Cluster, error) {
	var clusters []Cluster
	for part := range strings.SplitSeq(text, ";") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue // a trailing semicolon
		}
		stanza, fields, found := strings.Cut(part, ":")
		if !found {
			return nil, errors.New("a cluster has no stanza before a colon")
		}
		c := Cluster{Stanza: strings.TrimSpace(stanza)}
		seen := map[string]bool{}
		for field := range strings.SplitSeq(fields, ",") {
			name, value, found := strings.Cut(field, "=")
			name, value = strings.TrimSpace(name), strings.TrimSpace(value)
			if !found || value == "" {
				return nil, fmt.Errorf("cluster %s: %q is not NAME=VALUE", c.Stanza, shorten(name))
			}
			if seen[name] {
				return nil, fmt.Errorf("cluster %s: %s stands there twice", c.Stanza, name)
			}
			seen[name] = true
			if err := c.setField(name, value); err != nil {
				return nil, fmt.Errorf("cluster %s: %w", c.Stanza, err)
			}
		}
		clusters = append(clusters, c)
	}
	return clusters, nil
}

func (c *Cluster) setField(name, value string) error {
	switch name {
	case "data":
		c.DataDir = value
	case "host":
		c.Host = value
	case "port":
		n, err := strconv.Atoi(value)
		if err != nil || n == 0 {
			return errors.New("port is not a number from 1 to 65535")
		}
		c.Port = n
	case "user":
		c.User = value
	case "bin":
		c.BinDir = value
	case "kind":
		c.Kind = value
	case "id":
		c.ID = value
	case "region":
		c.Region = value
	default:
		return fmt.Errorf("%q is not one of data, host, port, user, bin, kind, id, region", shorten(name))
	}
	return nil
}

// complete fills in defaults and checks each member.
func (c *Cluster) complete() error {
	if c.Port == 0 {
		c.Port = 5432
	}
	if !validStanza(c.Stanza) {
		return fmt.Errorf("stanza %q is not a name of letters, digits, - and _ that begins with a letter or digit", shorten(c.Stanza))
	}
	if c.Port < 1 || c.Port > 65535 {
		return errors.New("port is not a number from 1 to 65535")
	}
	if err := c.completeKind(); err != nil {
		return err
	}
	for _, text := range []string{c.DataDir, c.Host, c.User, c.BinDir, c.ID, c.Region} {
		if err := checkText(text); err != nil { // JSON can bring in what the text did not show
			return err
		}
		if len(text) > 4096 || strings.TrimSpace(text) != text {
			return errors.New("a member is too long or has spaces around it")
		}
	}
	if c.Host == "" { // of RDS alone
		return nil
	}
	return checkHost(c.Host)
}

// completeKind fills in and checks what the two kinds of clusters differ in.
func (c *Cluster) completeKind() error {
	switch c.Kind {
	case "local":
		c.Kind = ""
	case "":
	case KindRDS:
		switch {
		case c.DataDir != "" || c.BinDir != "":
			return errors.New("a DB instance of RDS has no data and no bin here")
		case !validInstance(c.ID):
			return errors.New("id is not the identifier of a DB instance (at most 63 letters, digits and single hyphens, a letter first)")
		case c.Region != "" && (len(c.Region) > 40 || strings.Trim(c.Region, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || !strings.Contains(c.Region, "-")):
			return errors.New("region is not the name of a region, such as eu-west-1")
		case strings.HasPrefix(c.Host, "/"):
			return errors.New("host of a DB instance of RDS is a host name, not a directory")
		}
		c.ID = strings.ToLower(c.ID) // as the service keeps it
		return nil
	case "aurora", "rds-cluster":
		return errors.New("kind aurora is not supported: Aurora and Multi-AZ DB clusters have snapshots of their own kind, which Holdfast does not take")
	default:
		return fmt.Errorf("kind %q is not local or rds", shorten(c.Kind))
	}
	if c.ID != "" || c.Region != "" {
		return errors.New("id and region go with kind=rds")
	}
	if c.Host == "" {
		c.Host = "/tmp"
	}
	if c.User == "" {
		c.User = "alation"
	}
	if c.DataDir == "" || cleanPath(c.DataDir) == "/" {
		return errors.New("data names no directory below the instance's root")
	}
	return nil
}

// validInstance says whether id can be the identifier of a DB instance.
func validInstance(id string) bool {
	if id == "" || len(id) > 63 || strings.Contains(id, "--") || strings.HasSuffix(id, "-") {
		return false
	}
	for i, r := range id {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r != '-' && (r < '0' || r > '9')) {
			return false
		}
	}
	return true
}

func validStanza(name string) bool {
	if name == "" || len(name) > 128 {
		return false
	}
	for i, r := range name {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || r != '-' && r != '_') {
			return false
		}
	}
	return true
}

// FormatClusters prints clusters in the compact form, or as JSON if a member contains one of its separators.
func FormatClusters(clusters []Cluster) string {
	var b strings.Builder
	for i, c := range clusters {
		if strings.ContainsAny(c.DataDir+c.Host+c.User+c.BinDir, ",;") || strings.HasPrefix(c.Stanza, "[") {
			return formatClustersJSON(clusters)
		}
		if i > 0 {
			b.WriteByte(';')
		}
		if c.OnRDS() {
			b.WriteString(c.formatRDS())
			continue
		}
		fmt.Fprintf(&b, "%s:data=%s,host=%s,port=%d,user=%s", c.Stanza, c.DataDir, c.Host, c.Port, c.User)
		if c.BinDir != "" {
			b.WriteString(",bin=" + c.BinDir)
		}
	}
	return b.String()
}

// formatRDS prints a DB instance of RDS in the compact form.
func (c *Cluster) formatRDS() string {
	text := c.Stanza + ":kind=" + c.Kind + ",id=" + c.ID
	for _, f := range [][2]string{{"region", c.Region}, {"host", c.Host}, {"port", strconv.Itoa(c.Port)}, {"user", c.User}} {
		if f[1] != "" {
			text += "," + f[0] + "=" + f[1]
		}
	}
	return text
}

func formatClustersJSON(clusters []Cluster) string {
	data, err := json.Marshal(clusters)
	if err != nil { // strings and ints always marshal
		panic(err)
	}
	return string(data)
}
