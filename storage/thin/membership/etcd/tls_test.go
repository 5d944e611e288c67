// SPDX-License-Identifier: Apache-2.0

//go:build integration

package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"diskhook/storage/failure"
)

// authority signs certificates of a test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir string) authority {
	t.Helper()
	a := authority{dir: dir}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key = a.write(t, "ca", template)
	return a
}

// write makes a key and a certificate, signed by the authority or, before there is
// one, by itself.
func (a authority) write(t *testing.T, name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{a.path(name + ".crt"): {Type: "CERTIFICATE", Bytes: der}, a.path(name + ".key"): {Type: "EC PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (a authority) path(name string) string { return filepath.Join(a.dir, name) }

// issue makes the certificate of a server on this machine, or of a client.
func (a authority) issue(t *testing.T, name string, usage ...x509.ExtKeyUsage) {
	t.Helper()
	a.write(t, name, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
}

// An etcd that wants certificates: hosts that have theirs take part, and those are
// turned away that have none, or do not know the server's authority.
func TestCertificates(t *testing.T) {
	l := newLabOf(t, "https", func(l *lab) {
		a := newAuthority(t, l.dir)
		// The server asks itself, too, as a client.
		a.issue(t, "server", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
		a.issue(t, "client", x509.ExtKeyUsageClientAuth)
		l.options = []string{"--cert-file", a.path("server.crt"), "--key-file", a.path("server.key"), "--trusted-ca-file", a.path("ca.crt"), "--client-cert-auth"}
		l.config.CA, l.config.Cert, l.config.Key = a.path("ca.crt"), a.path("client.crt"), a.path("client.key")
	})
	l.host("alpha")
	l.hear(1, "alpha on-master --epoch 1")
	l.host("beta")
	l.hear(1, "beta on-join")
	l.is("beta", joined)

	other := newAuthority(t, t.TempDir())
	for name, change := range map[string]func(*Config){
		"no certificate": func(c *Config) { c.Cert, c.Key = "", "" },
		"a certificate of another": func(c *Config) {
			other.issue(t, "client", x509.ExtKeyUsageClientAuth)
			c.Cert, c.Key = other.path("client.crt"), other.path("client.key")
		},
		"an authority of another":  func(c *Config) { c.CA = other.path("ca.crt") },
		"the system's authorities": func(c *Config) { c.CA = "" },
	} {
		t.Run(name, func(t *testing.T) {
			config := l.config
			change(&config)
			t.Parallel()
			client, err := config.dial()
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			ctx, stop := context.WithTimeout(t.Context(), time.Minute)
			defer stop()
			if r, err := client.Grant(ctx, 60); err == nil {
				t.Errorf("it was let in: %v", r)
			}
		})
	}
}

// Files that do not serve are refused before anybody is asked, with the way out.
func TestUnusableFiles(t *testing.T) {
	a := newAuthority(t, t.TempDir())
	empty := a.path("empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.issue(t, "one", x509.ExtKeyUsageClientAuth)
	a.issue(t, "two", x509.ExtKeyUsageClientAuth)
	for says, c := range map[string]Config{
		"ca: open":                {CA: a.path("none")},
		"it holds no certificate": {CA: empty},
		"none and key":            {Cert: a.path("none"), Key: a.path("one.key")},
		"does not match":          {Cert: a.path("one.crt"), Key: a.path("two.key")},
		"password_file":           {Password: a.path("none")},
	} {
		c.Endpoints = []string{"https://127.0.0.1:2379"}
		_, err := c.dial()
		if !errors.Is(err, failure.Precondition) || !strings.Contains(err.Error(), says) || !strings.Contains(failure.HintOf(err), "password_file") {
			t.Errorf("%v, want %q", err, says)
		}
	}
}
