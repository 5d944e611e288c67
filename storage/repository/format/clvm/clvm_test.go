// SPDX-License-Identifier: Apache-2.0

package clvm_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/lvm"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/clvm"
	"diskhook/storage/repository/format/formattest"
)

// site is a volume group on files, and the hosts that have it.
type site struct {
	testing.TB
	dir string
}

const vg = "shared"

func newSite(t testing.TB, lockType string) site {
	s := site{t, t.TempDir()}
	must(t, lvmtest.CreateShared(s.state(), vg, lockType, 64<<20, 64<<10))
	return s
}

func (s site) state() string { return filepath.Join(s.dir, "group") }

// documents is the file of the documents.
func (s site) documents() string { return filepath.Join(s.state(), "dh_documents.img") }

// on is the format on a host with a number.
func (s site) on(host string, number int) clvm.Format {
	root := filepath.Join(s.dir, host)
	dev := filepath.Join(root, "dev")
	return clvm.Format{
		LVM: &lvm.LVM{Run: lvmtest.Shared{State: s.state(), Dev: dev, Host: host}}, Dev: dev,
		HostID: host, BootID: host + "-boot", Number: number, Locks: filepath.Join(root, "lock"), Cursors: filepath.Join(root, "cursors"),
		Beat: time.Second / 2, Buckets: 4,
		Await: func(_ context.Context, path string) error { _, err := os.Stat(path); return err },
	}
}

func (s site) open(f clvm.Format, parameters map[string]string) format.Place {
	s.Helper()
	p, err := f.Open(s.Context(), parameters)
	must(s, err)
	s.Cleanup(func() { must(s, p.Close()) })
	return p
}

var (
	shared = map[string]string{"vg": vg}
	single = map[string]string{"vg": vg, "writer": "h1"}
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v (%s)", err, failure.HintOf(err))
	}
}

func TestConforms(t *testing.T) {
	t.Parallel()
	t.Run("hosts with a lock manager", func(t *testing.T) {
		s := newSite(t, "sanlock")
		formattest.Conform(t, s.on("h1", 1), shared, func() (format.Place, error) { return s.on("h2", 2).Open(t.Context(), shared) })
	})
	t.Run("hosts that fill it", func(t *testing.T) {
		s := newSite(t, "sanlock")
		on := func(host string, number int) clvm.Format {
			f := s.on(host, number)
			f.Buckets = 1
			return f
		}
		formattest.Conform(t, on("h1", 1), shared, func() (format.Place, error) { return on("h2", 2).Open(t.Context(), shared) })
	})
	t.Run("a single writer", func(t *testing.T) {
		s := newSite(t, "")
		formattest.Conform(t, s.on("h1", 0), single, func() (format.Place, error) { return s.on("h1", 0).Open(t.Context(), single) })
	})
}
