// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"diskhook/storage/failure"
	"diskhook/storage/thin/membership"
)

// Config is how a site's etcd is reached, as clusters.d/NAME.json has it in
// "membership".
type Config struct {
	Endpoints []string `json:"endpoints"` // URLs
	CA        string   `json:"ca,omitempty"`
	Cert      string   `json:"cert,omitempty"` // of a client; with Key
	Key       string   `json:"key,omitempty"`
	User      string   `json:"user,omitempty"`
	Password  string   `json:"password_file,omitempty"`
	Prefix    string   `json:"prefix,omitempty"` // of all keys; default /diskhook/thin
	// TTL is how long a host may be silent, in seconds; default 15.
	TTL int `json:"ttl,omitempty"`
	// Grace is how long the leader waits after that for the host to come back before
	// it has it fenced, in seconds; default TTL.
	Grace int `json:"grace,omitempty"`
	// BootGrace is how long after this host's own boot nobody is fenced, in seconds;
	// default 300: after an outage of all the others are booting, too.
	BootGrace *int `json:"boot_grace,omitempty"`
	// Fence is the site's fence command; without one evidence has to come from an
	// operator.
	Fence *membership.Fence `json:"fence,omitempty"`
}

// The defaults of what a configuration leaves out.
const (
	defaultPrefix = "/diskhook/thin"
	defaultTTL    = 15
	defaultBoot   = 300
)

// Check refuses what could not work, as a failure.Precondition.
func (c Config) Check() error {
	reason := ""
	for _, e := range c.Endpoints {
		if u, err := url.Parse(e); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			reason = fmt.Sprintf("endpoint %q is no URL like https://host:2379", e)
		}
	}
	switch {
	case reason != "":
	case len(c.Endpoints) == 0:
		reason = "it names no endpoints"
	case (c.Cert == "") != (c.Key == ""):
		reason = "cert and key go together"
	case c.Prefix != "" && (!strings.HasPrefix(c.Prefix, "/") || strings.HasSuffix(c.Prefix, "/")):
		reason = fmt.Sprintf("prefix %q does not begin with /, or ends with it", c.Prefix)
	case c.TTL < 0 || c.Grace < 0 || c.BootGrace != nil && *c.BootGrace < 0:
		reason = "a time is negative"
	default:
		if c.Fence != nil {
			return c.Fence.Check()
		}
		return nil
	}
	err := failure.New(failure.Precondition, "etcd: %s", reason)
	return failure.Hint(err, "correct membership in the cluster's definition, see diskhook(8), thin membership")
}

func (c Config) ttl() int {
	if c.TTL == 0 {
		return defaultTTL
	}
	return c.TTL
}

// patience is how long etcd may take for an answer before that is logged.
func (c Config) patience() time.Duration {
	return max(time.Duration(c.ttl())*time.Second, ending)
}

func (c Config) grace() time.Duration {
	if c.Grace == 0 {
		return time.Duration(c.ttl()) * time.Second
	}
	return time.Duration(c.Grace) * time.Second
}

func (c Config) bootGrace() time.Duration {
	if c.BootGrace == nil {
		return defaultBoot * time.Second
	}
	return time.Duration(*c.BootGrace) * time.Second
}

// dial makes the client. It connects when it is first used, and again whenever it
// has to.
func (c Config) dial() (*clientv3.Client, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	config := clientv3.Config{
		Endpoints: c.Endpoints, Username: c.User,
		DialTimeout: 10 * time.Second, DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
	}
	if c.Password != "" {
		b, err := os.ReadFile(c.Password)
		if err != nil {
			return nil, unusable(fmt.Errorf("password_file: %w", err))
		}
		config.Password = strings.TrimSpace(string(b))
	}
	var err error
	if config.TLS, err = c.tls(); err != nil {
		return nil, unusable(err)
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return client, nil
}

// unusable says that a file which the configuration names does not serve.
func unusable(err error) error {
	err = failure.New(failure.Precondition, "etcd: %w", err)
	return failure.Hint(err, "see ca, cert, key and password_file of membership in the cluster's definition, and that root may read these files")
}

// tls is nil where the configuration names no certificates: then the system's
// authorities are asked about https endpoints.
func (c Config) tls() (*tls.Config, error) {
	if c.CA == "" && c.Cert == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		b, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("ca: %s: it holds no certificate", c.CA)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("cert %s and key %s: %w", c.Cert, c.Key, err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}
