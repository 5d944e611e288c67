// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"regexp"
	"testing"
	"time"
)

// TestDeadline: a copy that takes longer than a hook may is a veto that says
// how far it is. It goes on, and a later start finds it.
func TestDeadline(t *testing.T) {
	d := newDomain(t, "slow")
	image := diskImage(false)
	image = append(image, make([]byte, 14<<20)...)
	for i := imageSize; i < len(image); i++ {
		image[i] = byte(i >> 7)
	}
	writeImage(t, d.image(), image)
	d.bind("fill='start'", diskXML("file", d.image(), "raw", "vda"))
	d.define()
	configured(t, roots+"[local]\ndeadline = \"2s\"\nrate = \"1MiB\"\n")

	began := time.Now()
	done := make(chan time.Duration)
	go func() {
		time.Sleep(time.Second)
		asked := time.Now()
		_ = try(t, "virsh", "-q", "list", "--all")
		done <- time.Since(asked)
	}()
	said := d.startVetoed("domain slow: disk vda: ", "the copy goes on", "diskhook local status slow")
	took := time.Since(began)
	if !regexp.MustCompile(`at \d+ % and takes (about \d+\S+|a while) more`).MatchString(said) {
		t.Errorf("neither percent nor time in: %s", said)
	}
	// Much more than the deadline, for loaded machines.
	if took < 2*time.Second || took > time.Minute {
		t.Errorf("the start was refused after %s, the deadline is 2s", took)
	}
	if blocked := <-done; blocked > time.Minute {
		t.Errorf("`virsh list` waited %s", blocked)
	}
	d.linked(false)
	if exists(d.copy()) || !exists(d.copy()+".partial") {
		t.Fatal("the copy does not go on, or is there already")
	}
	says(t, diskhook(t, 0, "local", "status", "slow"), "vda", "%")

	// A start meanwhile joins the copy that goes on, and starts no other.
	d.startVetoed("the copy goes on")
	eventually(t, func() bool { return exists(d.copy()) }, "the copy does not become ready")
	d.start()
	d.boots(1)
	holds(t, d.copy(), after(image, 1))
	holds(t, d.image(), image)
}

// TestCancel ends a copy that a start began; the next start begins anew.
func TestCancel(t *testing.T) {
	d := newDomain(t, "cancel")
	image := append(diskImage(false), make([]byte, 30<<20)...)
	for i := imageSize; i < len(image); i++ {
		image[i] = byte(i >> 7)
	}
	writeImage(t, d.image(), image)
	d.bind("fill='start'", diskXML("file", d.image(), "raw", "vda"))
	d.define()
	configured(t, roots+"[local]\ndeadline = \"1s\"\nrate = \"1MiB\"\n")
	d.startVetoed("the copy goes on")
	diskhook(t, 0, "local", "cancel", "cancel", "vda")
	if exists(d.copy()) || exists(d.copy()+".partial") || d.receipt() != nil {
		t.Error("the cancelled copy left something")
	}
	configured(t, roots)
	d.start()
	d.boots(1)
	holds(t, d.copy(), after(image, 1))
}
