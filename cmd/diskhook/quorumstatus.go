// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

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

func quorumVerify(p *program, c *cli.Context) error {
	f, s, set, _, err := setArgs(p, c)
	if err != nil {
		return err
	}
	r := p.reporter(f)
	v, err := s.quorum.Verify(c.Context, set.Name, r.work("replica set "+set.Name))
	r.close()
	if err != nil {
		return err
	}
	if err := p.printVerification(f, v); err != nil || v.Equal() {
		return err
	}
	return v.Err()
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
		add(id, v.Differs[id], "differs from the majority")
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

// quorumStatus tells of one set in full; without a name, of all in a line each.
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
	items := []quorum.Status{}
	for _, name := range names {
		status, err := s.quorum.Status(c.Context, name)
		if err != nil {
			return err
		}
		items = append(items, status)
	}
	return p.printStatus(f, items)
}

func (p *program) printStatus(f format, items []quorum.Status) error {
	l := listing{
		schema: "diskhook.quorum-status/v1", member: "sets", items: items,
		header: []string{"SET", "REPLICA", "VOTES", "GENERATION", "IMAGE", "PROBLEM"}, ifEmpty: "no replica sets",
	}
	for _, status := range items {
		for _, r := range status.Replicas {
			generation := ""
			if r.Mark != nil {
				generation = strconv.FormatUint(r.Mark.Generation.Number, 10)
			}
			l.rows = append(l.rows, []string{status.Set.Name, r.ID, yesNo(r.Votes), generation, r.Path, r.Why})
			l.names = append(l.names, status.Set.Name+"/"+r.ID)
		}
	}
	if err := p.print(f, l); err != nil || f != table {
		return err
	}
	for _, status := range items {
		if status.Veto != "" {
			fmt.Fprintf(p.stderr, "diskhook: a start would be refused: %s; %s\n", harmless(status.Veto), harmless(status.Hint))
		}
	}
	return nil
}
