// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"diskhook/storage/quorum"
)

// shownSet is one set as list prints it.
type shownSet struct {
	Name      string   `json:"name"`
	UUID      string   `json:"uuid"`
	Size      int64    `json:"size"`
	Threshold int      `json:"threshold"`
	Replicas  []string `json:"replicas"`
	Pattern   string   `json:"read_pattern"`
	Served    bool     `json:"served"`
}

func quorumList(p *program, c *cli.Context) error {
	f, s, _, err := verbArgs(p, c)
	if err != nil {
		return err
	}
	sets, faults := s.quorum.List(c.Context)
	items := []shownSet{}
	l := listing{
		schema: "diskhook.quorum-sets/v1", member: "sets",
		header: []string{"NAME", "SIZE", "THRESHOLD", "READS", "IN USE", "REPLICAS"}, ifEmpty: "no replica sets",
	}
	for _, set := range sets {
		served, err := s.quorum.Locked(set.Name)
		if err != nil {
			s.log.Warn("lock", "set", set.Name, "err", err)
		}
		item := shownSet{Name: set.Name, UUID: set.UUID, Size: set.Size, Threshold: set.Threshold, Pattern: set.ReadPattern, Served: served}
		for _, r := range set.Replicas {
			item.Replicas = append(item.Replicas, r.Top().String())
		}
		items = append(items, item)
		l.names = append(l.names, set.Name)
		l.rows = append(l.rows, []string{set.Name, size(set.Size), votes(set), set.ReadPattern, yesNo(served), strings.Join(item.Replicas, " ")})
	}
	if l.items = items; faults != nil && len(items) == 0 {
		return faults
	}
	if err := p.print(f, l); err != nil {
		return err
	}
	return faults
}

func votes(set quorum.Set) string {
	return strconv.Itoa(set.Threshold) + " of " + strconv.Itoa(len(set.Replicas))
}

func yesNo(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

func (p *program) printVerification(f format, v quorum.Verification) error {
	if f == inJSON {
		return p.printJSON(struct {
			Schema string `json:"schema"`
			Equal  bool   `json:"equal"`
			quorum.Verification
		}{"diskhook.quorum-verification/v1", v.Equal(), v})
	}
	l := listing{header: []string{"REPLICA", "BYTES", "RANGES", "PROBLEM"}}
	add := func(id string, ranges []quorum.Range, what string) {
		l.rows = append(l.rows, []string{id, size(bytesOf(ranges)), inRanges(ranges), what})
		l.names = append(l.names, id)
	}
	for _, id := range ids(v.Differs) {
		add(id, v.Differs[id], "differs from the majority") // also the disk of --against, "source"
	}
	if len(v.NoMajority) > 0 {
		add("all", v.NoMajority, "no majority")
	}
	for _, id := range ids(v.Missing) {
		add(id, nil, v.Missing[id])
	}
	if v.Equal() && f == table {
		fmt.Fprintf(p.stderr, "diskhook: replica set %s: all replicas are equal (%s read of each)\n", harmless(v.Set), size(v.Read))
		return nil
	}
	return p.print(f, l)
}

func ids[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func bytesOf(ranges []quorum.Range) int64 {
	var n int64
	for _, r := range ranges {
		n += r.Length
	}
	return n
}

// inRanges tells the first few; JSON has all.
func inRanges(ranges []quorum.Range) string {
	const most = 4
	var words []string
	for i, r := range ranges {
		if i == most {
			words = append(words, fmt.Sprintf("and %d more", len(ranges)-most))
			break
		}
		words = append(words, fmt.Sprintf("%d+%d", r.Offset, r.Length))
	}
	return strings.Join(words, " ")
}

// setStatus is what is known of a set: what lies there, what whoever serves it
// tells, and what happened last.
type setStatus struct {
	quorum.Status
	Use    *quorum.Use    `json:"use,omitempty"`  // who uses it
	Live   *quorum.Live   `json:"live,omitempty"` // while it is served
	Events []quorum.Event `json:"events"`         // newest last
}

// lastEvents is how many of them are shown.
const lastEvents = 10

// quorumStatus tells of one set, or of all.
func quorumStatus(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "[NAME]")
	if err != nil {
		return err
	}
	names := words
	if words[0] == "" {
		sets, faults := s.quorum.List(c.Context)
		if faults != nil {
			s.log.Warn("replica sets", "err", faults)
		}
		names = nil
		for _, set := range sets {
			names = append(names, set.Name)
		}
	}
	// At once: each may wait for a server that hangs.
	items := make([]setStatus, len(names))
	failed := make([]error, len(names))
	var pending sync.WaitGroup
	for i, name := range names {
		pending.Go(func() { items[i], failed[i] = s.statusOf(c.Context, name) })
	}
	pending.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return p.printStatus(f, items)
}

func (s *services) statusOf(ctx context.Context, set string) (setStatus, error) {
	var item setStatus
	var err error
	if item.Status, err = s.quorum.Status(ctx, set); err != nil {
		return item, err
	}
	if use, err := s.quorum.Claim(set); err == nil {
		item.Use = &use
	}
	if live, err := s.quorum.Live(set); err == nil && item.Served && live.PID != 0 {
		item.Live = &live
	}
	events, err := s.quorum.Events(set)
	if err != nil {
		s.log.Warn("events", "set", set, "err", err)
	}
	item.Events = append([]quorum.Event{}, events[max(0, len(events)-lastEvents):]...)
	return item, nil
}

func (p *program) printStatus(f format, items []setStatus) error {
	l := listing{
		schema: "diskhook.quorum-status/v1", member: "sets", items: items,
		header: []string{"SET", "REPLICA", "STATE", "GENERATION", "SINCE", "IMAGE", "PROBLEM"}, ifEmpty: "no replica sets",
	}
	for _, item := range items {
		for _, r := range item.Replicas {
			generation := ""
			if r.Mark != nil {
				generation = strconv.FormatUint(r.Mark.Generation.Number, 10)
			}
			state, why, since := item.stateOf(r)
			l.rows = append(l.rows, []string{item.Set.Name, r.ID, state, generation, since, r.Path, why})
			l.names = append(l.names, item.Set.Name+"/"+r.ID)
		}
	}
	if err := p.print(f, l); err != nil || f != table {
		return err
	}
	for _, item := range items {
		if err := p.printUse(item); err != nil {
			return err
		}
	}
	return nil
}

// stateOf tells of a replica, by who serves it if anybody does: marks lag
// behind that. since is when it lost its vote.
func (s setStatus) stateOf(r quorum.ReplicaStatus) (state, why, since string) {
	state, why = quorum.Voting, r.Why
	out := r.Out
	if !r.Votes {
		state = quorum.OutOfSet
	}
	if r.Mark != nil && r.Mark.Suspect != "" {
		state = quorum.Suspected
	}
	if r.Doubt != nil && r.Votes {
		state, why = quorum.Suspected, string(r.Doubt.Reason)+", until the next start makes all replicas equal"
	}
	if s.Live != nil {
		for _, live := range s.Live.Replicas {
			if live.ID != r.ID {
				continue
			}
			state, why = live.State, live.Why
			if !live.Again.IsZero() {
				why += ", tried again at " + live.Again.Local().Format(time.TimeOnly)
			}
			if state == quorum.Voting && !r.Votes && !r.Stale {
				why = r.Why // its image hangs, or is not there any more
			}
			if state == quorum.Suspected && out.IsZero() {
				out = live.Since
			}
			if live.State == quorum.InResync && live.Total > 0 {
				state += fmt.Sprintf(" %d %%", 100*live.Done/live.Total)
			}
		}
	}
	switch {
	case state == quorum.Voting:
		return state, why, ""
	case r.Doubt != nil:
		return state, why, r.Doubt.Since.Local().Format(time.DateTime)
	}
	if !out.IsZero() {
		since = out.Local().Format(time.DateTime)
	}
	return state, why, since
}

// heard tells of a guest whose own QEMU has the replicas whether somebody
// listens to what it reports of them.
func heard(l quorum.Live) string {
	switch {
	case l.Kind != quorum.Inline || l.State != quorum.Serving:
		return ""
	case l.Heard:
		return "; what QEMU reports of replicas is heard"
	}
	return "; what QEMU reports of replicas is not heard, as libvirt is away"
}

// printUse tells below the table who uses a set, and what happened to it.
func (p *program) printUse(s setStatus) error {
	var lines []string
	switch {
	case s.Use != nil && s.Live != nil:
		lines = append(lines, fmt.Sprintf("%s: %s to %s, generation %d (process %d)%s", s.Set.Name, s.Live.State, s.Use, s.Live.Generation, s.Live.PID, heard(*s.Live)))
	case s.Use != nil:
		lines = append(lines, fmt.Sprintf("%s: claimed by %s, and not served; a guest that waits for it goes on after `systemctl start diskhook-quorum@%s`", s.Set.Name, s.Use, s.Set.Name))
	case s.Set.User != nil:
		lines = append(lines, fmt.Sprintf("%s: has what the guest wrote to %s (%s)", s.Set.Name, s.Set.User, s.Set.User.Domain))
	}
	for _, e := range s.Events {
		words := []string{e.Time.Local().Format(time.DateTime), e.Event, e.Replica, string(e.Reason)}
		if e.Length > 0 {
			words = append(words, fmt.Sprintf("bytes %d+%d", e.Offset, e.Length))
		}
		lines = append(lines, s.Set.Name+": "+strings.Join(strings.Fields(strings.Join(append(words, e.Text), " ")), " "))
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(p.stdout, harmless(line)); err != nil {
			return err
		}
	}
	if s.Live == nil && s.Veto != "" {
		fmt.Fprintf(p.stderr, "diskhook: a start would be refused: %s; %s\n", harmless(s.Veto), harmless(s.Hint))
	}
	return nil
}
