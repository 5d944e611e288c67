// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"os"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/quorum"
)

// A set stands for the disk that it was built from as long as nobody wrote to
// that disk; the fingerprint tells without reading either.
func TestCurrent(t *testing.T) {
	w := built(t)
	set, err := w.Load("db")
	must(t, err)
	if set.Source == nil || set.Source.Fingerprint == "" {
		t.Fatal("the set does not know what it was built from")
	}
	must(t, w.Current(t.Context(), "db", w.source, nil))

	// Touched, and not written to: the content decides.
	must(t, os.Chtimes(w.source[1].Path, time.Now(), time.Now().Add(time.Hour)))
	w.spoil("r2", "0x11", "512k", "4k") // outvoted
	must(t, w.Current(t.Context(), "db", w.source, nil))

	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x44 5M 64k", w.source[0].Path)
	err = w.Current(t.Context(), "db", w.source, nil)
	w.refused(err, failure.Conflict, "it does not hold what "+w.source[0].Path+" holds now: 65536 bytes differ from byte 5242880 on",
		"diskhook quorum remove db", "diskhook quorum build --overwrite --replicas "+w.path("a.raw")+","+w.path("b.qcow2")+","+w.path("c.raw")+" --threshold 2 --from "+w.source[0].Path+" --from-format qcow2 db")

	// The disk is a replica itself, of which only one of three was written to.
	w.spoil("r1", "0x55", "6M", "4k")
	err = w.Current(t.Context(), "db", []imagecheck.Layer{{Path: w.path("a.raw"), Format: "raw"}}, nil)
	w.refused(err, failure.Conflict, "4096 bytes differ from byte 6291456 on", "diskhook quorum resync --from r1 db")
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{From: "r1"})
	must(t, err)
	must(t, w.Current(t.Context(), "db", []imagecheck.Layer{{Path: w.path("a.raw"), Format: "raw"}}, nil))
}

// What a guest wrote to a set is not in the disk that the set was built from.
func TestCurrentAfterAGuest(t *testing.T) {
	w := served(t)
	w.works("write -P 9 5M 4k", "flush")
	w.refused(w.Current(t.Context(), "db", w.source, nil), failure.Conflict, "it is served to a guest")
	w.stop()
	w.refused(w.Current(t.Context(), "db", w.source, nil), failure.Conflict, "4096 bytes differ from byte 5242880 on")
}
