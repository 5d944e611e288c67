// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"testing"

	"diskhook/hooks/domains"
)

// Every start of a domain is another run; a domain that does not run is none.
func TestRunsAreTold(t *testing.T) {
	conn := connect(t)
	defineVM(t, conn, "<domain type='test'><name>runs</name><memory unit='KiB'>8192</memory><os><type arch='i686'>hvm</type></os></domain>")
	dom, err := lookup(conn, "runs")
	if err != nil {
		t.Fatal(err)
	}
	defer dom.Free()
	seen := map[string]bool{}
	for range 2 {
		f, err := tellFacts(conn, domains.DomainRequest{Domain: "runs"})
		if err != nil || f.Active || f.Run != "" {
			t.Fatalf("shut off: %+v, %v", f, err)
		}
		if err := dom.Create(); err != nil {
			t.Fatal(err)
		}
		f, err = tellFacts(conn, domains.DomainRequest{Domain: "runs"})
		if err != nil || f.Run == "" || seen[f.Run] {
			t.Errorf("running: %+v, %v; before: %v", f, err, seen)
		}
		seen[f.Run] = true
		if err := dom.Suspend(); err != nil {
			t.Fatal(err)
		}
		if again, err := tellFacts(conn, domains.DomainRequest{Domain: "runs"}); err != nil || again.Run != f.Run {
			t.Errorf("suspended it is %+v, %v", again, err)
		}
		if err := dom.Destroy(); err != nil {
			t.Fatal(err)
		}
	}
}
