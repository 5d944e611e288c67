// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"time"

	"diskhook/storage/failure"
)

// Watcher hears what the QEMU of a domain reports that opens a set itself. Its
// monitor belongs to libvirt, which hands events on.
type Watcher interface {
	// Watch calls told, from one goroutine, until ctx ends. That nothing will ever
	// be heard is a failure.Precondition; after another error it is called again.
	Watch(ctx context.Context, use Use, told func(Heard)) error
}

// Heard is one thing that a Watcher tells.
type Heard struct {
	// Event is ReportBad or ReportFailure, with its Report. "" tells
	// from when on events are heard, or not, and Why.
	Event  string
	Report Report
	// Child says of ReportBad which of the quorum's children it is about,
	// which are the set's replicas in their order.
	Child int

	Listening bool
	Why       string
}

// vigil is what a set's process does for a guest whose QEMU has the replicas.
// It sees to it that reports last: in the log of events, as Doubts, and in the
// status. It decides nothing, and holds nothing up.
//
// What QEMU reports while nobody listens, as libvirt is restarted, is lost. So a
// set without reports is not a set without differences: before the next use all
// replicas are compared in any case.
type vigil struct {
	*Service
	set    Set
	use    Use
	gen    Generation
	live   *liveFile
	doubts map[string]Doubt
	told   map[string]time.Time // when an event was last noted, by what it says
	deaf   time.Time            // since when nothing is heard that was heard before
}

// watch hears reports until ctx ends; again says that an earlier process did.
func (s *Service) watch(ctx context.Context, set Set, use Use, g Generation, live *liveFile, again bool) {
	if s.Watcher == nil {
		return
	}
	v := &vigil{Service: s, set: set, use: use, gen: g, live: live, told: map[string]time.Time{}}
	if again {
		v.deaf = time.Now()
	}
	v.recall()
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		err := s.Watcher.Watch(ctx, use, v.heard)
		if ctx.Err() != nil {
			return
		}
		v.listening(false)
		s.Log.Warn("what the guest's QEMU reports of replicas is not heard", "set", set.Name, "err", err)
		if errors.Is(err, failure.Precondition) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// recall takes up what was found before this process came.
func (v *vigil) recall() {
	all, err := v.Service.doubts(v.set)
	if err != nil {
		v.Log.Warn("suspects are not known", "err", err)
	}
	v.doubts = map[string]Doubt{}
	for id, d := range all {
		if d.Raise == v.gen.Raise {
			v.doubts[id] = d
			v.show(id, d)
		}
	}
}

func (v *vigil) show(id string, d Doubt) {
	v.live.replica(id, func(r *LiveReplica) { r.State, r.Why, r.Since = Suspected, string(d.Reason), d.Since })
}

func (v *vigil) heard(h Heard) {
	at, length := h.Report.bytes()
	switch h.Event {
	case "":
		v.listening(h.Listening)
		v.Log.Info("what the guest's QEMU reports of replicas", "set", v.set.Name, "heard", h.Listening, "why", h.Why)
	case ReportFailure:
		v.Log.Error("no majority: the guest gets an I/O error", "set", v.set.Name, "offset", at, "length", length)
		v.once(Event{Event: EventFailure, Offset: at, Length: length})
		v.live.change(func(l *Live) { l.Failures++ })
	case ReportBad:
		if h.Child < 0 || h.Child >= len(v.set.Replicas) {
			return
		}
		id, why, text := v.set.Replicas[h.Child].ID, reasonOf(h.Report), clip(failure.OneLine(h.Report.Error))
		v.Log.Warn("a replica is bad", "set", v.set.Name, "replica", id, "type", h.Report.Type, "err", text, "offset", at, "length", length)
		v.once(Event{Event: EventBad, Replica: id, Reason: why, Offset: at, Length: length, Text: text})
		v.suspect(id, why, text)
	}
}

// oftenEnough is how often the same is noted again. QEMU goes on to report a
// replica once a second, which would push everything else out of the log.
const oftenEnough = time.Minute

func (v *vigil) once(e Event) {
	what := e.Event + " " + e.Replica + " " + string(e.Reason)
	if last, noted := v.told[what]; noted && time.Since(last) < oftenEnough {
		return
	}
	v.told[what] = time.Now()
	v.note(v.set.Name, e)
}

// suspect makes a replica suspect, if it is not yet. A mismatch may pass: a
// guest that reads what it is just writing makes QEMU see one. To look again
// the guest would have to be stopped, and a suspect loses nothing by it.
func (v *vigil) suspect(id string, why Reason, text string) {
	if _, already := v.doubts[id]; already {
		return
	}
	d := Doubt{Reason: why, Since: time.Now().UTC(), Raise: v.gen.Raise}
	v.doubts[id] = d
	v.Log.Error("replica is suspect", "set", v.set.Name, "replica", id, "reason", why, "err", text)
	v.note(v.set.Name, Event{Event: EventSuspect, Replica: id, Reason: why, Text: text, Generation: v.gen.Number})
	if err := v.doubt(v.set, v.doubts); err != nil {
		v.Log.Error("suspect is not remembered", "set", v.set.Name, "replica", id, "err", err)
	}
	v.show(id, d)
}

// listening notes a time in which nothing was heard, once it is over.
func (v *vigil) listening(is bool) {
	was := false
	v.live.change(func(l *Live) { was, l.Heard = l.Heard, is })
	switch {
	case was && !is:
		v.deaf = time.Now()
	case is && !v.deaf.IsZero():
		v.note(v.set.Name, Event{Event: EventUnheard, Text: "for " + time.Since(v.deaf).Round(time.Second).String()})
		v.deaf = time.Time{}
	}
}
