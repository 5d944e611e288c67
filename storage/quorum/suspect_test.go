// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

// A suspect that the generation could not be raised without does not become
// clean when the set is closed.
func TestClosedClean(t *testing.T) {
	for name, test := range map[string]struct {
		fails   string // failpoint; the first raise is that of the start
		unclean bool
	}{
		"at the end": {"quorum.raised=error@2", false},
		"never":      {"quorum.raised=error@2,quorum.raised=error@3", true},
	} {
		t.Run(name, func(t *testing.T) {
			w := built(t)
			w.spoil("r3", "0x11", "3M", "64k")
			t.Setenv("DISKHOOK_FAILPOINT", test.fails)
			w.start()
			t.Setenv("DISKHOOK_FAILPOINT", "")
			w.works("read -P 0x33 3M 192k")
			w.untilState("r3", quorum.Suspected, string(quorum.Mismatch))
			w.stop()
			if d := w.decision(); d.Unclean != test.unclean || strings.Join(d.Open, " ") != "r1 r2" {
				t.Errorf("%+v", d)
			}
			if test.unclean { // as two cannot outvote each other
				_, err := w.Resync(t.Context(), "db", quorum.Resyncing{})
				must(t, err)
			}
			w.start()
			w.works("read -P 0x33 3M 192k")
			must(t, w.ResyncServed(t.Context(), "db", "", nil))
			w.until("equal", func(l quorum.Live) bool { return !l.Equalising })
			w.stop()
			w.equalReplicas()
		})
	}
}

// One that the others are too few without keeps its vote, and no resync while the
// set is served says otherwise.
func TestSuspectThatStays(t *testing.T) {
	w := newWorld(t)
	l, injects := w.remote("remote")
	b := w.building()
	b.Replicas, b.Overwrite = []quorum.Layer{b.Replicas[0], l}, true
	_, err := w.Build(t.Context(), b)
	must(t, err)
	injects("iotype=flush")
	w.start()
	_, _ = w.guest("write -P 5 1M 64k", "flush")
	w.untilState("r2", quorum.Suspected, string(quorum.FlushError))
	err = w.ResyncServed(t.Context(), "db", "", nil)
	w.refused(err, failure.Precondition, "r2 is suspect (flush-error)", "too few without it", "diskhook quorum resync db")
	w.stop()
	if d := w.decision(); !d.Unclean {
		t.Errorf("it is clean: %+v", d)
	}
}

// A set that cannot be offered to guests is closed as it was found, and says why.
func TestNotOffered(t *testing.T) {
	for file, unclean := range map[string]bool{"private/daemon.sock": false, "control.sock": true} {
		t.Run(file, func(t *testing.T) {
			w := built(t)
			if unclean {
				set, err := w.Load("db")
				must(t, err)
				d := w.decision()
				_, err = w.Raise(t.Context(), set, d.Base, d.Next, d.Open)
				must(t, err)
				w.spoil("r3", "0x11", "3M", "64k")
			}
			inTheWay := w.path("run/diskhook/quorum/db/" + file)
			must(t, os.MkdirAll(inTheWay+"/x", 0o700))
			_, err := w.Start(t.Context(), "db", vda, time.Minute)
			if err == nil || !strings.Contains(failure.Line(err), filepath.Base(file)) {
				t.Errorf("%v", err)
			}
			w.awaitFree()
			if d := w.decision(); d.Unclean != unclean || d.Veto != nil {
				t.Errorf("%+v", d)
			}
			must(t, os.RemoveAll(inTheWay))
			w.start()
			w.works("read -P 0x33 3M 192k")
		})
	}
}

// remote makes a replica on an NBD server, which injects has answer requests
// with errors from then on.
func (w *world) remote(name string) (_ quorum.Layer, injects func(what string)) {
	w.Helper()
	image, socket := w.path(name+".raw"), w.path(name+".sock")
	must(w.T, os.WriteFile(image, nil, 0o600))
	must(w.T, os.Truncate(image, diskSize))
	server := w.nbdServer(socket, "driver=raw,file.driver=file,file.filename="+image)
	l, err := quorum.ParseReplica("nbd+unix:///disk?socket="+socket, "")
	must(w.T, err)
	return l, func(what string) {
		w.Helper()
		must(w.T, server.Kill())
		w.nbdServer(socket, "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename="+image+
			",file.inject-error.0.event=none,file.inject-error.0.errno=5,file.inject-error.0."+what)
	}
}
