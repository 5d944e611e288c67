// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/claim"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/member"
)

const copyName = "dh_" + vm + "_vda"

var copyID = id(7001)

func newCopy(n uuid.UUID) member.NewCopy {
	return member.NewCopy{Name: copyName, Size: perVolume * blockSize, Label: claim.Label{Volume: n, Tags: []string{"UPDATING"}}, Granted: true}
}

// copies has what is known of the copy, nil if nothing is.
func (h *node) copy() *member.Copy {
	h.w.Helper()
	all, err := h.Copies(h.w.Context())
	h.w.must(err)
	if i := slices.IndexFunc(all.All, func(c member.Copy) bool { return c.Name == copyName }); i >= 0 {
		return &all.All[i]
	}
	return nil
}

// makes a copy that a guest writes to.
func (h *node) makes() {
	h.w.Helper()
	h.w.must(h.MakeCopy(h.w.Context(), newCopy(copyID)))
	h.w.wrote[copyName] = map[uint64]uint32{}
	h.write(copyName, 0)
	h.write(copyName, perVolume-1)
}

// gone wants nothing to be left of the copy.
func (h *node) gone() {
	h.w.Helper()
	m, _ := h.w.readMap()
	for _, v := range m.Volumes {
		if v.Name == copyName {
			h.w.Fatalf("left: %+v", v)
		}
	}
	if c := h.copy(); c != nil {
		h.w.Fatalf("left: %+v", c)
	}
}

// A copy is of its label, stays at its host over boots, and nobody takes it away but
// who made it.
func TestCopy(t *testing.T) {
	w := stage(t)
	one, two := w.hosts[0], w.hosts[1]
	one.makes()
	c := one.copy()
	if c == nil || c.UUID != copyID || !c.Here || !c.Active || c.InUse || c.Size != perVolume*blockSize || c.Label == nil {
		t.Fatalf("%+v", c)
	}
	w.is(one.MakeCopy(t.Context(), newCopy(id(7002))), failure.Conflict, "diskhook local adopt")
	w.is(two.MakeCopy(t.Context(), newCopy(id(7003))), failure.Conflict, "where it was made")
	if c := two.copy(); c != nil {
		t.Errorf("of another host: %+v", c)
	}
	w.is(one.Detach(t.Context(), copyName), failure.Conflict, "diskhook local remove")
	w.is(one.DetachFrom(t.Context(), copyName, vm), failure.Conflict, "diskhook local remove")
	w.is(one.Delete(t.Context(), copyName), failure.Conflict, "diskhook local remove")
	_, err := one.Claim(t.Context(), copyName, vm)
	w.is(err, failure.Conflict, "diskhook local list")
	_, err = one.Preview(t.Context(), copyName, vm)
	w.is(err, failure.Conflict, "diskhook local list")
	w.is(one.Relabel(t.Context(), copyName, claim.Label{Volume: id(7004)}), failure.Conflict, "")
	w.must(one.Relabel(t.Context(), copyName, claim.Label{Volume: copyID, Tags: []string{"ready"}}))
	if c := one.copy(); !slices.Equal(c.Label.Tags, []string{"ready"}) {
		t.Errorf("%+v", c.Label)
	}
	one.reads(copyName)

	w.must(one.Stop(t.Context())) // no domain runs
	w.is(one.HoldCopies(t.Context(), map[string]uuid.UUID{copyName: copyID}), failure.Precondition, "thin start")
	if c := one.copy(); c.Active {
		t.Errorf("%+v", c)
	}
	stopped, err := one.Copies(t.Context())
	w.must(err)
	w.is(stopped.Stopped, failure.Precondition, "thin start")
	one.boot()
	one.start()
	w.must(one.HoldCopies(t.Context(), map[string]uuid.UUID{copyName: copyID}))
	w.is(one.HoldCopies(t.Context(), map[string]uuid.UUID{copyName: id(7005)}), failure.Conflict, "")
	one.reads(copyName)
	guest := one.guest(copyName)
	w.is(one.RemoveCopy(t.Context(), copyName, copyID), failure.Conflict, "fuser")
	w.must(guest.Close())
	w.must(one.RemoveCopy(t.Context(), copyName, id(7006))) // there is none of that UUID
	one.reads(copyName)
	for range 2 {
		w.must(one.RemoveCopy(t.Context(), copyName, copyID))
		one.gone()
	}
	w.check()
}

// What a recovered host finds offline comes back to it, and what another one has
// meanwhile does not.
func TestCopyOfARecoveredHost(t *testing.T) {
	w := stage(t)
	one, two := w.hosts[0], w.hosts[1]
	one.makes()
	one.recovered()
	one.letIn()
	one.boot()
	one.fetch()
	one.start()
	if c := one.copy(); c == nil || c.Here || c.Host != "" || c.Label == nil {
		t.Fatalf("%+v", c)
	}
	two.request(8)
	two.attach(copyName)
	if c := one.copy(); c.Here || c.Host != "host2" {
		t.Fatalf("%+v", c)
	}
	hold := map[string]uuid.UUID{copyName: copyID}
	w.is(one.HoldCopies(t.Context(), hold), failure.Conflict, "")
	w.is(one.RemoveCopy(t.Context(), copyName, copyID), failure.Conflict, "on host2")
	two.reads(copyName)
	two.detach(copyName)
	w.must(one.HoldCopies(t.Context(), hold))
	one.reads(copyName)
	w.check()
}

// Without a master nothing is made, and what may be on its way is not forgotten.
func TestCopyWithoutAMaster(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	one.request(perVolume)
	for _, mute := range []bool{false, true} { // it does nothing, or nobody hears of it
		w.away, w.mute = !mute, mute
		w.is(one.MakeCopy(t.Context(), newCopy(copyID)), failure.Temporary, "")
		if c := one.copy(); c == nil || c.Label == nil || !slices.Contains(c.Label.Tags, "UPDATING") {
			t.Fatalf("%+v", c)
		}
		w.is(one.RemoveCopy(t.Context(), copyName, copyID), failure.Temporary, "")
		w.is(one.MakeCopy(t.Context(), newCopy(id(7002))), failure.Temporary, "")
		if c := one.copy(); c == nil || c.UUID != copyID {
			t.Fatalf("%+v", c)
		}
		w.away, w.mute = false, false
		w.must(one.RemoveCopy(t.Context(), copyName, copyID))
		one.gone()
	}
	one.makes()
	one.reads(copyName)
	w.check()
}

// A copy for which the cluster has no room is refused before anything is noted; one
// that nobody has granted anything for is not.
func TestCopyWithoutRoom(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	large := newCopy(copyID)
	large.Size = blocks * blockSize
	w.is(one.MakeCopy(t.Context(), large), failure.NoSpace, "thin grow")
	one.gone()
	large.Granted = false
	w.must(one.MakeCopy(t.Context(), large))
	all, err := one.Copies(t.Context())
	w.must(err)
	m, _ := w.readMap()
	if all.Cluster != clusterID || all.Stopped != nil || all.Total != blocks*blockSize || all.BlockSize != blockSize ||
		all.Free != m.Owned(layout.Owner{Kind: layout.Free}).Blocks()*blockSize || all.Slack == 0 {
		t.Errorf("%+v", all)
	}
	w.check()
}

// Copies that begin one right after the other do not count on the same blocks: what the
// first may still take is its own, however little of it was written, and a place that
// they do not fit into together is refused before anything is noted.
func TestCopiesThatBeginAtOnce(t *testing.T) {
	w := newWorld(t, t.TempDir(), 1)
	one := w.hosts[0]
	one.start()
	another := func(n int, size uint64) member.NewCopy {
		c := newCopy(id(7100 + n))
		c.Name, c.Size, c.Filling = fmt.Sprint("dh_", n), size*blockSize, "UPDATING"
		return c
	}
	free := func(want uint64) {
		t.Helper()
		if got := one.status().Pool.Free(); got < want {
			t.Errorf("%d blocks are free, the copies may take %d", got, want)
		}
	}
	one.request(perVolume)
	for n := range 3 {
		c := another(n, perVolume)
		w.must(one.MakeCopy(t.Context(), c))
		w.wrote[c.Name] = map[uint64]uint32{}
		free(uint64(n+1) * perVolume)
	}
	for v := range uint64(5) {
		one.write("dh_1", v)
	}
	all, err := one.Copies(t.Context())
	w.must(err)
	for _, c := range all.All {
		if want := map[string]uint64{"dh_1": 5 * blockSize}[c.Name]; c.Taken != want {
			t.Errorf("%s has taken %d bytes, want %d", c.Name, c.Taken, want)
		}
	}
	const left = blocks - 3*perVolume
	large := another(3, left)
	large.Reserve = 1
	w.is(one.MakeCopy(t.Context(), large), failure.NoSpace, "thin grow")
	w.is(one.MakeCopy(t.Context(), another(3, left+1)), failure.NoSpace, "thin grow")
	w.must(one.Relabel(t.Context(), "dh_0", claim.Label{Volume: id(7100), Tags: []string{"ready"}}))
	w.must(one.MakeCopy(t.Context(), another(3, left+1))) // a complete one takes what it needs
	free(left + 1 + perVolume + perVolume - 5)
	w.check()
}

// A label that is damaged says nothing, and of no other copy; one that is lost is
// written anew for who takes the copy over.
func TestCopyWithoutItsLabel(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	one.makes()
	file := one.Labels.Dir + "/" + copyName + ".json"
	w.must(os.WriteFile(file, []byte("{"), 0o644))
	if c := one.copy(); c == nil || c.Label != nil || !errors.Is(c.Damaged, failure.Problems) || c.UUID != copyID {
		t.Errorf("%+v", c)
	}
	w.is(one.Detach(t.Context(), copyName), failure.Problems, "local adopt")
	w.must(os.Remove(file))
	if c := one.copy(); c == nil || c.Label != nil || c.Damaged != nil || c.UUID != copyID {
		t.Errorf("%+v", c)
	}
	w.is(one.Relabel(t.Context(), copyName, claim.Label{Volume: id(7002)}), failure.Conflict, "")
	w.must(one.Relabel(t.Context(), copyName, claim.Label{Volume: copyID}))
	if c := one.copy(); c.Label == nil {
		t.Errorf("%+v", c)
	}
}

// Wherever a program that makes or removes a copy is killed: what is left of it has
// its label, and goes, and another one can be made.
func TestCopyKilled(t *testing.T) {
	for _, boots := range []bool{false, true} {
		for _, verb := range []string{"make", "remove"} {
			t.Run(fmt.Sprintf("%s, boots %t", verb, boots), func(t *testing.T) {
				t.Parallel()
				stride := 1
				if boots {
					stride = 3
				}
				for at := 0; killCopy(t, verb, at, boots); at += stride {
				}
			})
		}
	}
}

func killCopy(t *testing.T, verb string, at int, boots bool) (killed bool) {
	w := stage(t)
	one := w.hosts[0]
	defer func() {
		if t.Failed() {
			t.Logf("killed before step %d", at)
		}
	}()
	do := func(one *node) error { return one.MakeCopy(t.Context(), newCopy(copyID)) }
	if verb == "remove" {
		one.makes()
		do = func(one *node) error { return one.RemoveCopy(t.Context(), copyName, copyID) }
	}
	killed = one.killed(do, at, boots)
	// The program that comes next finishes what it finds in the header: what it sees
	// of the copy then has a label, or is nothing.
	w.must(one.Settle(t.Context()))
	m, _ := w.readMap()
	there := slices.ContainsFunc(m.Volumes, func(v layout.VolumeRecord) bool { return v.UUID == copyID })
	if c := one.copy(); there && (c == nil || c.Label == nil || c.UUID != copyID) {
		t.Fatalf("a volume without its label: %+v", c)
	}
	w.must(one.RemoveCopy(t.Context(), copyName, copyID))
	one.gone()
	one.makes()
	one.reads(copyName)
	one.reads("v1")
	w.check()
	return killed
}
