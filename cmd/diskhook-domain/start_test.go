// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"fmt"
	"testing"

	"diskhook/hooks/domains"
	"diskhook/storage/failure"
)

func TestStart(t *testing.T) {
	conn := connect(t)
	defineVM(t, conn, fmt.Sprintf(offline, "vm"))
	for range 2 { // the second finds it running
		f, err := ask[domains.Facts](t, conn, domains.VerbStart, domains.DomainRequest{Domain: "vm"})
		if err != nil || !f.Active || f.State != "running" {
			t.Fatalf("%+v, %v", f, err)
		}
	}
	if _, err := ask[domains.Facts](t, conn, domains.VerbStart, domains.DomainRequest{Domain: "nobody"}); failure.KindOf(err) != failure.NotFound {
		t.Errorf("got %v", err)
	}
}
