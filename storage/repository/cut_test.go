// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package repository_test

import (
	"strings"
	"testing"

	"diskhook/storage/repository"
)

// Who asked for a snapshot died before the disk was marked, and the disk has grown
// since: nothing that was written behind its old end is cut off.
func TestADiskThatGrewBeforeItsSnapshotKeepsItsEnd(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h2"), t.Context()
		args := both(w)
		err := w.process("h1", "snapshot", args, "DISKHOOK_FAILPOINT=repository.snapshot.commit=kill")
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the failpoint did not fire: %v", err)
		}
		now := w.path("now.raw")
		must(t, s.ResizeVirtualDisk(ctx, "a", args[0], 8*mib, repository.Options{}))
		w.tool("truncate", "-s", "8M", now)
		w.write("a", args[0], now, 7, "6M", "1M")
		must(t, s.Resume(ctx, "a"))
		w.settled()
		w.holds("a", args[0], now)
		w.holds("a", w.newest("a", args[0], args[1]), now)
		w.holds("a", args[1], w.path("before.raw"))
	})
}
