package cli

import (
	"fmt"
	"sync"

	"holdfast/internal/action"
	"holdfast/internal/conf"
	"holdfast/internal/pg"
	"holdfast/internal/rds"
)

// maxPrefix is how long the prefix of DB snapshots' names may be: the set's id and the instance's name follow it.
const maxPrefix = 40

// wireRDS: which databases are DB instances of Amazon RDS, and how the service is reached. Clients are made when they are
// first needed, one for each region.
func wireRDS(_ *Env, w *wired, o *action.Options) error {
	v := w.values
	password, err := v.Secret(conf.KeyRDSPassword)
	if err != nil {
		return err
	}
	for _, c := range v.Clusters(conf.KeyClusters) {
		if !c.OnRDS() {
			continue
		}
		r := action.RDSCluster{Stanza: c.Stanza, Region: c.Region, Instance: c.ID, Conn: pg.ConnOptions{Host: c.Host, Port: c.Port, User: c.User, Password: pg.Secret(password.Reveal())}}
		if r.Region == "" {
			r.Region = v.String(conf.KeyRDSRegion)
		}
		if err := rds.CheckRegion(r.Region); err != nil {
			return &refusedError{fmt.Sprintf("cluster %s: %v; set it: alation_conf %s -s REGION", c.Stanza, err, conf.KeyRDSRegion)}
		}
		if ca := w.file(conf.KeyRDSServerCAFile); ca != "" {
			r.Conn.SSLMode, r.Conn.SSLRoots = "verify-full", ca
		}
		o.RDS.Clusters = append(o.RDS.Clusters, r)
	}
	if err := rds.CheckName(v.String(conf.KeyRDSPrefix), maxPrefix); err != nil && len(o.RDS.Clusters) > 0 {
		return &refusedError{fmt.Sprintf("%s: %v", conf.KeyRDSPrefix, err)}
	}
	key, err := v.Secret(conf.KeyRDSKey)
	if err != nil {
		return err
	}
	secret, err := v.Secret(conf.KeyRDSSecret)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	clients := map[string]*rds.Client{}
	o.RDS.Open = func(region string) (*rds.Client, error) {
		mu.Lock()
		defer mu.Unlock()
		if c := clients[region]; c != nil {
			return c, nil
		}
		c, err := rds.New(rds.Options{Region: region, Endpoint: v.String(conf.KeyRDSEndpoint), CAFile: w.file(conf.KeyRDSCAFile), Key: rds.Secret(key.Reveal()), Secret: rds.Secret(secret.Reveal())})
		if err == nil {
			clients[region] = c
		}
		return c, err
	}
	o.RDS.Prefix, o.RDS.Limit = v.String(conf.KeyRDSPrefix), v.Duration(conf.KeyRDSTimeout)
	o.RDS.Suffix, o.RDS.Class, o.RDS.SubnetGroup = v.String(conf.KeyRDSSuffix), v.String(conf.KeyRDSClass), v.String(conf.KeyRDSSubnetGroup)
	o.RDS.SecurityGroups, o.RDS.ParameterGroup = v.List(conf.KeyRDSSecurityGroups), v.String(conf.KeyRDSParameterGroup)
	return nil
}
