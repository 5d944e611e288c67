// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/request"
)

const (
	vm    = "11111111-1111-4111-8111-111111111111"
	other = "22222222-2222-4222-8222-222222222222"
)

func (h *node) claim(volume, domain string) {
	h.w.Helper()
	path, err := h.Claim(h.w.Context(), volume, domain)
	h.w.must(err)
	if path != h.Path(volume) {
		h.w.Fatalf("%q", path)
	}
	h.has(volume, domain)
}

// has wants a domain to have a volume, "" nobody.
func (h *node) has(volume, domain string) {
	h.w.Helper()
	holder, err := h.Claims.Holder(volume)
	h.w.must(err)
	if holder != domain {
		h.w.Fatalf("volume %s: %q has it, want %q", volume, holder, domain)
	}
}

func (h *node) release(volume, domain string) {
	h.w.Helper()
	h.w.must(h.Release(h.w.Context(), volume, domain))
	h.has(volume, "")
}

// A domain has its volume from before it is attached until it was detached, and
// nobody takes it away in between.
func TestClaim(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	one.claim("v2", vm)
	one.claim("v2", vm)
	one.reads("v2")
	_, err := one.Claim(t.Context(), "v2", other)
	w.is(err, failure.Conflict, "thin detach --domain "+vm+" v2")
	w.is(one.Detach(t.Context(), "v2"), failure.Conflict, "shut that domain down")
	w.is(one.DetachFrom(t.Context(), "v2", other), failure.Conflict, "thin detach --domain "+vm)
	w.is(one.Stop(t.Context()), failure.Conflict, "thin detach --domain "+vm)
	_, err = w.hosts[1].Claim(t.Context(), "v2", other)
	w.is(err, failure.Conflict, "")
	w.hosts[1].has("v2", "")
	w.must(one.Release(t.Context(), "v2", other))
	one.has("v2", vm)
	one.attach("v2") // which is made sure of, and stays the domain's
	one.has("v2", vm)
	one.write("v2", 1)
	one.reads("v2")
	w.check()
	for range 2 {
		one.release("v2", vm)
		if v := w.record("v2"); v.State != layout.Offline {
			t.Errorf("%+v", v)
		}
	}
	w.hosts[1].claim("v2", other)
	w.hosts[1].reads("v2")
	w.check()
}

// What was attached by hand stays here at the end of a domain; what is open, or not
// there, is nobody's.
func TestClaimOfWhatIsHere(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	guest := one.guest("v1")
	_, err := one.Claim(t.Context(), "v1", vm)
	w.is(err, failure.Conflict, "fuser")
	one.has("v1", "")
	w.must(guest.Close())
	one.claim("v1", vm)
	guest = one.guest("v1")
	one.claim("v1", vm) // its own
	w.must(guest.Close())
	one.release("v1", vm)
	if v := w.record("v1"); v.State != layout.Attached {
		t.Errorf("%+v", v)
	}
	one.reads("v1")
	_, err = one.Claim(t.Context(), "v9", vm)
	w.is(err, failure.NotFound, "thin create v9")
	w.must(one.Release(t.Context(), "v9", vm))
	one.must(one.Stop(t.Context()))
	_, err = one.Claim(t.Context(), "v1", vm)
	w.is(err, failure.Precondition, "thin start")
	one.has("v1", "")
}

// No domain outlives its host. That a volume came for a domain's sake does, so that
// the next one's end detaches it.
func TestClaimOfAnEarlierBoot(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	one.claim("v2", vm)
	one.boot()
	one.has("v2", "")
	one.start()
	w.must(one.Release(t.Context(), "v2", vm)) // of a boot that is over
	if v := w.record("v2"); v.State != layout.Attached {
		t.Errorf("%+v", v)
	}
	one.claim("v2", other)
	one.release("v2", other)
	if v := w.record("v2"); v.State != layout.Offline {
		t.Errorf("%+v", v)
	}
	one.claim("v2", vm)
	one.boot()
	one.start()
	one.detach("v2") // by hand
	one.attach("v2")
	one.claim("v2", vm)
	one.release("v2", vm)
	if v := w.record("v2"); v.State != layout.Attached {
		t.Errorf("%+v", v)
	}
}

// A claim that got lost is made again for the domain that runs, and for no other; of a
// volume that is not here any more nobody makes one.
func TestReclaim(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	one.claim("v2", vm)
	guest := one.guest("v2")
	w.must(one.Claims.Drop("v2"))
	for range 2 {
		w.must(one.Reclaim(t.Context(), "v2", vm))
		one.has("v2", vm)
	}
	w.is(one.Reclaim(t.Context(), "v2", other), failure.Conflict, "--domain "+vm)
	w.must(guest.Close())
	one.release("v2", vm)
	w.is(one.Reclaim(t.Context(), "v2", vm), failure.Conflict, "start it again")
	one.has("v2", "")
}

// A domain that has gone though nobody released it.
func TestDetachFrom(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	one.claim("v2", vm)
	guest := one.guest("v2")
	w.is(one.DetachFrom(t.Context(), "v2", vm), failure.Conflict, "fuser")
	one.has("v2", vm)
	w.must(guest.Close())
	w.must(one.DetachFrom(t.Context(), "v2", vm))
	one.has("v2", "")
	w.check()
}

// While the master is away a volume that is here goes on, one that is not is refused,
// and what ended meanwhile is detached when it is back.
func TestClaimWhileMasterIsAway(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	w.away = true
	one.claim("v1", vm)
	_, err := one.Claim(t.Context(), "v2", vm)
	w.is(err, failure.Temporary, "")
	w.is(one.Release(t.Context(), "v2", vm), failure.Temporary, "")
	one.has("v2", "")
	w.away = false
	one.LowWater = 0
	w.must(one.watch(t, func(int, error) bool {
		last, err := one.Claims.Last("v2")
		return err == nil && last == nil
	}))
	if v := w.record("v2"); v.State != layout.Offline {
		t.Errorf("%+v", v)
	}
	one.release("v1", vm)

	one.claim("v2", vm)
	w.away = true
	w.is(one.Release(t.Context(), "v2", vm), failure.Temporary, "")
	one.has("v2", "")
	_, err = one.Claim(t.Context(), "v2", vm) // the master may take it away at any time
	w.is(err, failure.Temporary, "")
	w.away = false
	one.claim("v2", other) // which was on its way out
	one.reads("v2")
	one.release("v2", other)
	w.check()

	one.claim("v2", vm)
	guest := one.guest("v2")
	w.is(one.Release(t.Context(), "v2", vm), failure.Conflict, "fuser")
	one.attach("v2") // by hand: it stays
	w.must(guest.Close())
	w.must(one.watch(t, func(round int, err error) bool { w.must(err); return round == 3 }))
	if v := w.record("v2"); v.State != layout.Attached {
		t.Errorf("%+v", v)
	}
}

// What a start that was refused has asked the master for is given back, though the host
// booted before the master did it.
func TestRefusedStartBeforeABoot(t *testing.T) {
	for _, mute := range []bool{false, true} {
		w := stage(t)
		one := w.hosts[0]
		w.away, w.mute = !mute, mute
		_, err := one.Claim(t.Context(), "v2", vm)
		w.is(err, failure.Temporary, "")
		w.is(one.Release(t.Context(), "v2", vm), failure.Temporary, "")
		one.boot()
		w.away, w.mute = false, false
		one.start()
		one.LowWater = 0
		w.must(one.watch(t, func(round int, err error) bool {
			w.must(err)
			last, err := one.Claims.Last("v2")
			return err == nil && last == nil || round == 20
		}))
		if v := w.record("v2"); v.State != layout.Offline {
			t.Errorf("%+v", v)
		}
		w.hosts[1].claim("v2", other)
		w.hosts[1].reads("v2")
		w.check()
	}
}

// refusing is a master that does not do one kind of request.
type refusing struct{ request.Channel }

func (r refusing) Ask(ctx context.Context, sequence uint64, what request.Request) (request.Reply, error) {
	if _, ok := what.(request.FinishAttach); ok {
		return request.Reply{}, failure.Wrap(failure.NoSpace, request.ErrRefused)
	}
	return r.Channel.Ask(ctx, sequence, what)
}

// A start that is refused after the master has begun to attach the volume leaves it to be
// given back, and not to nobody.
func TestRefusedAfterTheAttachHasBegun(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	sound := one.Channel
	one.Channel = func(own layout.Device, epoch uint64) request.Channel { return refusing{sound(own, epoch)} }
	_, err := one.Claim(t.Context(), "v2", vm)
	w.is(err, failure.NoSpace, "")
	one.has("v2", vm)
	one.Channel = sound
	one.release("v2", vm)
	if v := w.record("v2"); v.State != layout.Offline {
		t.Errorf("%+v", v)
	}
	w.check()
}

// A program that is killed before any of its steps leaves a claim wherever the volume
// is on its way here or here, so that nobody else gets it; and the end of the domain,
// killed anywhere and repeated, leaves neither.
func TestClaimCrashes(t *testing.T) {
	for at := 0; ; at++ {
		w := stage(t)
		one := w.hosts[0]
		one.life.left = at
		_, err := one.Claim(t.Context(), "v2", vm)
		killed := one.life.left == 0
		one.life.left = -1
		if !killed {
			w.must(err)
		}
		if v := w.record("v2"); v.State.On() {
			one.has("v2", vm)
			_, err := one.Claim(t.Context(), "v2", other)
			w.is(err, failure.Conflict, "--domain "+vm)
		}
		one.claim("v2", vm)
		one.reads("v2")
		one.write("v2", 1)
		w.check()
		one.life.left = at
		err = one.Release(t.Context(), "v2", vm)
		released := one.life.left != 0
		one.life.left = -1
		if released {
			w.must(err)
		} else {
			w.must(one.watch(t, func(int, error) bool {
				last, err := one.Claims.Last("v2")
				return err == nil && last == nil
			}))
		}
		one.release("v2", vm)
		if v := w.record("v2"); v.State != layout.Offline {
			t.Fatalf("step %d: %+v", at, v)
		}
		w.check()
		if !killed && released {
			return
		}
	}
}

// A claim that cannot be read keeps everybody off.
func TestClaimIllegible(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	one.claim("v2", vm)
	w.must(scribble(one.Claims.Dir + "/v2.json"))
	for _, err := range []error{
		one.Detach(t.Context(), "v2"), one.Stop(t.Context()), one.Release(t.Context(), "v2", vm),
		func() error { _, err := one.Claim(t.Context(), "v2", vm); return err }(),
	} {
		w.is(err, failure.Problems, "remove the file")
	}
	if v := w.record("v2"); v.State != layout.Attached {
		t.Errorf("%+v", v)
	}
	if errors.Is(one.Rebuild(t.Context()), failure.Problems) {
		t.Error("what has nothing to do with it is refused")
	}
}

func scribble(path string) error { return os.WriteFile(path, []byte("{"), 0o600) }

// A domain that has gone keeps a volume on a host that is no member any more, until it
// is said that it has gone: then the host can be stopped and let in again.
func TestClaimOnAHostThatIsNoMember(t *testing.T) {
	for _, back := range []bool{false, true} {
		w := stage(t)
		one := w.hosts[0]
		former := one.kernel
		one.claim("v2", vm)
		guest := one.guest("v2")
		one.recovered()
		if back {
			one.letIn()
		}
		w.is(one.DetachFrom(t.Context(), "v2", vm), failure.Conflict, "fuser")
		w.must(guest.Close())
		w.is(one.Stop(t.Context()), failure.Conflict, "thin detach --domain "+vm)
		w.is(one.DetachFrom(t.Context(), "v2", other), failure.Conflict, "thin detach --domain "+vm)
		one.has("v2", vm)
		for range 2 {
			err := one.DetachFrom(t.Context(), "v2", vm)
			w.must(err)
		}
		one.has("v2", "")
		w.must(one.Stop(t.Context()))
		if names, err := former.List(t.Context()); err != nil || len(names) != 0 {
			t.Errorf("%q, %v", names, err)
		}
		if !back {
			one.letIn()
		}
		one.start()
		w.check()
	}
}
