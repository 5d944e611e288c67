// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format/heartbeat"
)

// register is what a host says in its slot, which only that host writes: the locks
// that its processes have or want, and the entries of others that it saw to be dead.
type register struct {
	Host    string  `json:"host"`
	Boot    string  `json:"boot"`
	Entries []entry `json:"entries,omitempty"`
	Buried  []grave `json:"buried,omitempty"` // oldest first
}

// entry is a lock that a process has or wants. A new beat says that it lives.
type entry struct {
	Name  string `json:"n"`
	Nonce string `json:"o"` // of this holding
	Beat  uint64 `json:"b"`
}

// grave is an entry that did not change for so long that its process is taken for
// dead. Should it wake up it finds its lock lost, and its entry counts no more.
type grave struct {
	Number int    `json:"h"` // of the host
	Nonce  string `json:"o"`
}

// mostGraves bounds what a host remembers; what is forgotten is judged again.
const mostGraves = 24

func (r *register) index(name string) int {
	return slices.IndexFunc(r.Entries, func(e entry) bool { return e.Name == name })
}

// parseRegister reads a host's slot. A host that never wrote has the zero register.
func (a *area) parseRegister(s slot) (register, error) {
	if err := a.ill(s); err != nil {
		return register{}, err
	}
	var r register
	if s.newest.kind != kindHost {
		return r, nil
	}
	if err := json.Unmarshal(s.newest.body, &r); err != nil {
		return r, failure.New(failure.Problems, "lv %s: slot of a host at %d: %w", a.name, s.at, err)
	}
	return r, nil
}

// registerLock is held on this host around a change of its slot.
const registerLock = "register"

// update changes what this host says. What processes that died left is dropped.
func (p *place) update(change func(*register) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), mostBeats*p.host.Beat)
	defer cancel()
	l, err := lock.Acquire(ctx, p.locks, registerLock)
	if err != nil {
		return err
	}
	defer l.Release()
	all, err := p.area.slots(hostsAt+int64(p.host.Number-1)*slotSize, 1)
	if err != nil {
		return err
	}
	r, err := p.area.parseRegister(all[0])
	if err != nil {
		return err
	}
	if r.Host != "" && r.Host != p.host.HostID && len(r.Entries) > 0 {
		err := failure.New(failure.Precondition, "lv %s: host number %d is %s's", p.area.name, p.host.Number, r.Host)
		return failure.Hint(err, "give each host a number of its own: [repository] host_id in diskhook.toml, 1 to %d", maxHost)
	}
	if r.Host != p.host.HostID || r.Boot != p.host.BootID {
		r = register{Host: p.host.HostID, Boot: p.host.BootID, Buried: r.Buried}
	}
	if err := p.prune(&r); err != nil {
		return err
	}
	if err := change(&r); err != nil {
		return err
	}
	return p.say(all[0], r)
}

// prune drops the entries of processes that died: the kernel has given their locks up.
func (p *place) prune(r *register) error {
	kept := r.Entries[:0]
	for _, e := range r.Entries {
		held, err := lock.Held(p.locks, e.Name)
		if err != nil {
			return err
		}
		if held {
			kept = append(kept, e)
		}
	}
	r.Entries = kept
	return nil
}

// say needs no flush: all hosts ask the same disk.
func (p *place) say(s slot, r register) error {
	r.Buried = r.Buried[max(0, len(r.Buried)-mostGraves):]
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(body) > maxBody {
		return failure.New(failure.Temporary, "lv %s: this host has too many locks at once", p.area.name)
	}
	at, sequence := s.next()
	return p.area.write(at, block{kind: kindHost, sequence: sequence, body: body}.encode(p.area.id), false)
}

// watch looks at what other hosts say of a lock, until it knows who lives.
type watch struct {
	*place
	lock  string
	seen  map[grave]sighting
	alive bool // one of the rivals that were seen last lives
}

type sighting struct {
	beat    uint64
	since   time.Duration // heartbeat.SinceBoot
	changed bool
}

func (p *place) watch(name string) *watch {
	return &watch{place: p, lock: name, seen: map[grave]sighting{}}
}

// look returns the numbers of the hosts that have or want the lock, in order. buried
// says that a dead one's entry was passed over. It buries those that have been silent
// for long enough.
func (w *watch) look(ctx context.Context) (rivals []int, buried bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, fmt.Errorf("%w: %w", lock.ErrHeld, err)
	}
	hosts, err := w.area.hosts()
	if err != nil {
		return nil, false, err
	}
	wanted := map[grave]entry{}
	graves := map[grave]bool{}
	for i, s := range hosts {
		r, err := w.area.parseRegister(s)
		if err != nil {
			return nil, false, err
		}
		for _, g := range r.Buried {
			graves[g] = true
		}
		if j := r.index(w.lock); j >= 0 && i+1 != w.host.Number {
			wanted[grave{i + 1, r.Entries[j].Nonce}] = r.Entries[j]
		}
	}
	w.alive = false
	for g, e := range wanted {
		if graves[g] {
			buried = true
			continue
		}
		if w.silent(g, e.Beat) {
			if err := w.update(func(r *register) error { r.Buried = append(r.Buried, g); return nil }); err != nil {
				return nil, false, err
			}
			buried = true
			continue
		}
		w.alive = w.alive || w.seen[g].changed
		rivals = append(rivals, g.Number)
	}
	slices.Sort(rivals)
	return rivals, buried, nil
}

// silent says that an entry has not changed for long enough.
func (w *watch) silent(g grave, beat uint64) bool {
	now := heartbeat.SinceBoot()
	before, known := w.seen[g]
	if !known || before.beat != beat {
		w.seen[g] = sighting{beat, now, known}
		return false
	}
	return now-before.since > judgeBeats*w.host.Beat
}

// until waits until no host of a lower number has the lock, or wants it; or, unless
// wait, until it is known that one lives.
func (w *watch) until(ctx context.Context, wait bool) error {
	for {
		if err := pause(ctx); err != nil {
			return err
		}
		rivals, _, err := w.look(ctx)
		if err != nil || len(rivals) == 0 || rivals[0] > w.host.Number {
			return err
		}
		if !wait && w.alive {
			return fmt.Errorf("lock %s: host number %d has it: %w", w.lock, rivals[0], lock.ErrHeld)
		}
	}
}
