// SPDX-License-Identifier: Apache-2.0

package request

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

// A host asks through its slots, and the master's answer comes back.
func TestSlots(t *testing.T) {
	cluster, host := uuid.UUID{1}, uuid.UUID{2}
	g := group.Files{Dir: t.TempDir(), Capacity: 64 << 20}
	name := layout.Host.Name(host)
	if err := g.Create(t.Context(), name, 4<<20); err != nil {
		t.Fatal(err)
	}
	dev, err := g.Open(t.Context(), name, true)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	windows, err := layout.WindowsFor(dev)
	if err != nil {
		t.Fatal(err)
	}
	header := layout.HostHeader{Geometry: layout.Geometry{BlockSize: layout.MinBlockSize, Blocks: 10}, Number: 1, Name: "one", Windows: windows}
	if _, err := layout.CreateHost(dev, cluster, host, 1, header); err != nil {
		t.Fatal(err)
	}
	slots := Slots{Device: dev, Cluster: cluster, Host: host, Epoch: 1, Poll: time.Millisecond}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = slots.Ask(ctx, 1, Delete{Volume: 4})
	if !errors.Is(err, failure.Temporary) || failure.HintOf(err) == "" {
		t.Fatalf("nobody answers: %v", err)
	}
	m, err := layout.ReadRequest(dev, cluster, host)
	if err != nil || m.Sequence != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	if r, err := Decode(m); err != nil || r != (Delete{Volume: 4}) {
		t.Fatalf("%#v, %v", r, err)
	}
	if err := layout.WriteReply(dev, cluster, host, Answer(m, 2, Reply{Number: 4}, nil)); err != nil {
		t.Fatal(err)
	}
	if r, err := slots.Ask(t.Context(), 1, Delete{Volume: 4}); err != nil || r.Number != 4 {
		t.Fatalf("%+v, %v", r, err)
	}
	answer := Answer(layout.Message{Sequence: 2}, 2, Reply{}, failure.New(failure.NoSpace, "the cluster is full"))
	if err := layout.WriteReply(dev, cluster, host, answer); err != nil {
		t.Fatal(err)
	}
	if _, err := slots.Ask(t.Context(), 2, Grant{Blocks: 1}); !errors.Is(err, failure.NoSpace) {
		t.Fatal(err)
	}
}
