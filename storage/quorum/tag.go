// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"diskhook/storage/lvm"
)

// tagMark is a mark in a tag of a logical volume. It is replaced in one commit
// of LVM's metadata, and goes where the volume goes.
type tagMark struct {
	lvm    *lvm.LVM
	vg, lv string
}

// tagPrefix begins the one tag. Fields are separated by colons, lists by plus
// signs; LVM takes both in a tag (lvm(8), "Tags"), and a comma in none:
//
//	DH_QUORUM:SET:REPLICA:NUMBER:RAISE:FROM:RAISE:clean|open:WITH:STATE:SUSPECT
//	DH_QUORUM:69b6…3bcf:r2:7:a1b2c3d4e5f60718:6:08f1…:clean:r1+r2+r3:open:
const tagPrefix = "DH_QUORUM:"

const (
	tagClean = "clean"
	tagOpen  = "open"
)

// tag spells a mark.
func (m Mark) tag() string {
	state := func(clean bool) string {
		if clean {
			return tagClean
		}
		return tagOpen
	}
	g := m.Generation
	return tagPrefix + strings.Join([]string{
		m.Set, m.Replica,
		strconv.FormatUint(g.Number, 10), g.Raise,
		strconv.FormatUint(g.From.Number, 10), g.From.Raise, state(g.From.Clean),
		strings.Join(g.With, "+"), state(m.Clean), string(m.Suspect),
	}, ":")
}

// parseTag reads what tag has spelled.
func parseTag(tag string) (Mark, error) {
	fields := strings.Split(strings.TrimPrefix(tag, tagPrefix), ":")
	if !strings.HasPrefix(tag, tagPrefix) || len(fields) != 10 {
		return Mark{}, errors.New("not a tag of a replica")
	}
	number, err := strconv.ParseUint(fields[2], 10, 64)
	from, err2 := strconv.ParseUint(fields[4], 10, 64)
	fromClean, err3 := parseState(fields[6])
	clean, err4 := parseState(fields[8])
	if err := errors.Join(err, err2, err3, err4); err != nil {
		return Mark{}, err
	}
	m := Mark{
		Schema: markSchema, Set: fields[0], Replica: fields[1], Clean: clean, Suspect: Reason(fields[9]),
		Generation: Generation{Number: number, Raise: fields[3], From: Origin{from, fields[5], fromClean}},
	}
	if fields[7] != "" {
		m.Generation.With = strings.Split(fields[7], "+")
	}
	if err := m.check(); err != nil {
		return Mark{}, err
	}
	if m.tag() != tag {
		return Mark{}, errors.New("not as it is written")
	}
	return m, nil
}

func parseState(s string) (clean bool, err error) {
	switch s {
	case tagClean:
		return true, nil
	case tagOpen:
		return false, nil
	}
	return false, fmt.Errorf("%q is neither %s nor %s", clip(s), tagClean, tagOpen)
}

func (t tagMark) String() string { return "lv " + t.vg + "/" + t.lv }

// tags are the volume's tags that are ours.
func (t tagMark) tags(ctx context.Context) ([]string, error) {
	report, err := t.lvm.Report(ctx, t.vg)
	if err != nil {
		return nil, err
	}
	lv, ok := report.LV(t.lv)
	if !ok {
		return nil, fmt.Errorf("%s: %w", t, lvm.ErrNoLV)
	}
	var own []string
	for _, tag := range lv.Tags {
		if strings.HasPrefix(tag, tagPrefix) {
			own = append(own, tag)
		}
	}
	return own, nil
}

func (t tagMark) read(ctx context.Context) (*Mark, error) {
	tags, err := t.tags(ctx)
	if err != nil || len(tags) == 0 {
		return nil, err
	}
	if len(tags) > 1 {
		return nil, damagedMark(t.String(), fmt.Errorf("it has %d of them", len(tags)))
	}
	m, err := parseTag(tags[0])
	if err != nil {
		return nil, damagedMark(t.String(), err)
	}
	return &m, nil
}

func (t tagMark) write(ctx context.Context, m Mark) error {
	if err := m.check(); err != nil {
		return fmt.Errorf("%s: mark: %w", t, err)
	}
	return t.replace(ctx, m.tag())
}

func (t tagMark) remove(ctx context.Context) error {
	err := t.replace(ctx)
	if errors.Is(err, lvm.ErrNoLV) {
		return nil
	}
	return err
}

// replace exchanges the tags for want with one lvchange.
func (t tagMark) replace(ctx context.Context, want ...string) error {
	had, err := t.tags(ctx)
	if err != nil {
		return err
	}
	var old []string
	for _, tag := range had {
		if len(want) == 0 || tag != want[0] {
			old = append(old, tag)
		}
	}
	return t.lvm.ChangeTags(ctx, t.vg, []string{t.lv}, want, old)
}
