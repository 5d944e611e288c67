// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/request"
)

// served is a cluster over files, which several goroutines may use.
func served(t *testing.T) (*master.Master, *master.Master, request.Slots) {
	g := group.Files{Dir: t.TempDir(), Capacity: 1 << 30}
	m := nominee(t, g)
	ctx := t.Context()
	if _, err := m.Init(ctx, master.Shape{Bytes: blocks * blockSize, BlockSize: blockSize}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Join(ctx, master.Newcomer{UUID: id(1), Name: "one"}); err != nil {
		t.Fatal(err)
	}
	dev, err := g.Open(ctx, layout.Host.Name(id(1)), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	return m, nominee(t, g), request.Slots{Device: dev, Cluster: clusterID, Host: id(1), Epoch: 1, Poll: time.Millisecond}
}

var quick = master.Pace{Slots: time.Millisecond, Map: time.Millisecond}

// A host asks over its slots, is answered, and refused; a request that was there
// before the master is answered too, once.
func TestServe(t *testing.T) {
	m, _, slots := served(t)
	early, err := request.Encode(1, 1, request.Grant{Blocks: 7})
	if err != nil {
		t.Fatal(err)
	}
	if err := layout.WriteRequest(slots.Device, clusterID, id(1), early); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Serve(ctx, quick) }()
	deadline, stop := context.WithTimeout(t.Context(), 5*time.Minute)
	defer stop()
	if r, err := slots.Ask(deadline, 1, request.Grant{Blocks: 7}); err != nil || r.Blocks != 7 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err := slots.Ask(deadline, 2, request.Create{ID: id(9), Name: "vol", Size: 512}); err != nil || r.Number != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := slots.Ask(deadline, 3, request.Grant{Blocks: 700}); !errors.Is(err, failure.NoSpace) || failure.HintOf(err) == "" {
		t.Fatal(err)
	}
	if _, err := slots.Ask(deadline, 4, request.Delete{Volume: 1}); err != nil {
		t.Fatal(err)
	}
	// A host that joins again counts from the beginning.
	if _, err := slots.Ask(deadline, 5, request.Leave{}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Join(ctx, master.Newcomer{UUID: id(1), Name: "one", Rejoin: true}); err != nil {
		t.Fatal(err)
	}
	if r, err := slots.Ask(deadline, 1, request.Grant{Blocks: 3}); err != nil || r.Blocks != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// writes counts how often the map was opened to be written to.
type writes struct {
	group.Group
	opened atomic.Int64
}

func (g *writes) Open(ctx context.Context, name string, write bool) (group.Volume, error) {
	if name == layout.MapName && write {
		g.opened.Add(1)
	}
	return g.Group.Open(ctx, name, write)
}

// A master that nobody asks anything only reads, which costs a group of LVM nothing.
func TestServeIdle(t *testing.T) {
	m, _, slots := served(t)
	counted := &writes{Group: m.Group}
	m.Group = counted
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Serve(ctx, quick) }()
	deadline, stop := context.WithTimeout(t.Context(), 5*time.Minute)
	defer stop()
	if _, err := slots.Ask(deadline, 1, request.Grant{Blocks: 1}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := counted.opened.Load(); n != 1 {
		t.Errorf("the map was opened %d times to be written to, want once", n)
	}
}

// stuck is a group that makes nothing before whoever asks for it has gone.
type stuck struct{ group.Group }

// Create fails as LVM does: it says what bounds the wait for a command.
func (stuck) Create(ctx context.Context, _ string, _ uint64) error {
	<-ctx.Done()
	return failure.Hint(failure.Wrap(failure.Temporary, ctx.Err()), "raise the timeout of LVM")
}

// A host that is the master itself and has waited long enough is not refused what it
// asked for: it asks again, and has it.
func TestAskedForTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, _ := served(t)
		sound := m.Group
		m.Group = stuck{sound}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		asked := request.Create{ID: id(9), Name: "vol", Size: 512}
		_, err := m.Channel(id(1)).Ask(ctx, 1, asked)
		if !errors.Is(err, failure.Temporary) || errors.Is(err, request.ErrRefused) || !strings.Contains(failure.HintOf(err), "--deadline") {
			t.Fatalf("%v (hint %q)", err, failure.HintOf(err))
		}
		m.Group = sound
		if r, err := m.Channel(id(1)).Ask(t.Context(), 1, asked); err != nil || r.Number != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
	})
}

// mute is a group that does not answer how it is, once the service has begun to end.
type mute struct {
	group.Group
	ending *atomic.Bool
}

func (g mute) List(ctx context.Context) ([]group.LV, error) {
	if g.ending.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return g.Group.List(ctx)
}

// A service that is stopped while LVM hangs ends before its unit is killed.
func TestServeEndsWithoutLVM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, _ := served(t)
		var ending atomic.Bool
		m.Group = mute{m.Group, &ending}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Serve(ctx, master.Pace{}) }()
		time.Sleep(10 * time.Second) // of the bubble
		ending.Store(true)
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(80 * time.Second):
			t.Error("it does not end")
		}
	})
}

// Its unit leaves the commands of LVM that it ends with alone, and is patient enough.
func TestUnitLetsServeEnd(t *testing.T) {
	unit, err := os.ReadFile("../../../contrib/systemd/diskhook-thin-master@.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"\nKillMode=mixed\n", "\nTimeoutStopSec=90s\n"} {
		if !strings.Contains(string(unit), line) {
			t.Errorf("it has no %q", line)
		}
	}
}

// Serve ends when another host is master, and what it had not answered the other
// one does.
func TestServeEnds(t *testing.T) {
	m, next, slots := served(t)
	deadline, stop := context.WithTimeout(t.Context(), 5*time.Minute)
	defer stop()
	ended := make(chan error, 2)
	go func() { ended <- m.Serve(deadline, quick) }()
	if _, err := slots.Ask(deadline, 1, request.Grant{Blocks: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Claim(deadline, 2); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, layout.ErrStale) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(deadline)
	go func() { ended <- next.Serve(ctx, quick) }()
	if r, err := slots.Ask(deadline, 2, request.Grant{Blocks: 1}); err != nil || r.Blocks != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
