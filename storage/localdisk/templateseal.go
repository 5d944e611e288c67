// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/transfer"
)

// That nobody may write to a template does not keep root from it, nor a disk
// that was repaired by cutting files off. Whatever disk were made of it then
// would be a mix. So what a template was when it was finished is noted, and
// looked at before each use: of a file size and time, in its sidecar; of a
// volume nothing but its size and that it is read-only can be told.
//
// One that is not what it was is made anew. Where overlays lie on it, which
// refuse to start and may wait for a backup of it, it stays, and the new one
// has the next name.

// seal is what the file of a template was when it was finished. The zero value
// is of one that is known to be wrong.
type seal struct {
	Size    int64     `json:"size"`    // bytes
	Written time.Time `json:"written"` // when its data was written last
}

// seal notes what a template is, or that it is wrong.
func (b *directory) seal(c Copy, right bool) error {
	side, err := b.readSidecar(c.Name)
	if err != nil {
		return err
	}
	side.Seal = &seal{}
	if right {
		side.Seal = &seal{c.Size, c.Written.UTC()}
	}
	return b.writeSidecar(c.Name, side)
}

// altered is why a ready template is not what it was when it was finished; "" is
// that nothing says so.
func (c Copy) altered() string {
	switch {
	case !c.file() && c.Writable:
		return "is not read-only any more"
	case c.seal == nil:
		return ""
	case c.seal.Written.IsZero():
		return "differs from its base"
	case c.Size != c.seal.Size:
		return fmt.Sprintf("has %d bytes, and had %d", c.Size, c.seal.Size)
	case !c.Written.Equal(c.seal.Written):
		return fmt.Sprintf("was written to at %s", c.Written.UTC().Format(time.DateTime))
	}
	return ""
}

// unlike is why a ready template is not that of the base, as far as can be told
// at a glance. sure is false for the files of older versions, which bear no seal.
func (c Copy) unlike(base *base) (why string, sure bool) {
	switch why := c.altered(); {
	case why != "":
		return why, true
	case c.Size < base.VirtualSize:
		return fmt.Sprintf("has %d bytes, its base %d", c.Size, base.VirtualSize), true
	}
	return "", c.seal != nil || !c.file()
}

// prove compares a template that bears no seal with its base, once.
func (s *Service) prove(ctx context.Context, d Disk, base *base, c Copy) (why string, err error) {
	b, files := s.backend(d).(*directory)
	if !files {
		return "", nil
	}
	s.Log.Info("compare a template with its base: an older version made it", "template", c.String(), "base", base.path)
	engine := &transfer.Engine{Run: s.Run, Log: s.Log}
	switch err := engine.Verify(ctx, from(base.Opened, c), c.target(), s.reader(d)); {
	case ctx.Err() != nil:
		return "", err
	case err == nil:
		return "", b.seal(c, true)
	case errors.Is(err, failure.Problems):
		return "differs from its base", b.seal(c, false)
	default:
		return failure.OneLine(fmt.Sprintf("cannot be compared with its base: %v", err)), nil
	}
}

// pick finds the template of a base among the copies of its home, and names it
// in the base. Of several those that are ready go first; unlike says why one of
// these is of no use, and whether it is gone now. If there is none, the base
// gets the name of a new one.
func (b *base) pick(copies map[string]Copy, unlike func(Copy) (useless, gone bool, err error)) (c Copy, found bool, err error) {
	first, _, _ := strings.Cut(strings.TrimPrefix(b.template, templatePrefix), templateNext)
	first = templatePrefix + first
	names := slices.Sorted(maps.Keys(copies))
	names = slices.DeleteFunc(names, func(name string) bool {
		return !validTemplate(name) || templateLock(name) != templateLock(b.template)
	})
	useful := func(c Copy) bool { return c.State == Ready && c.Sick == "" && isTemplate(c) }
	taken := map[string]bool{}
	for _, name := range names {
		if c = copies[name]; !useful(c) {
			continue
		}
		useless, gone, err := unlike(c)
		if err != nil || !useless {
			b.template = name
			return c, true, err
		}
		taken[name] = !gone
	}
	for _, name := range names {
		if c = copies[name]; !useful(c) {
			b.template = name
			return c, true, nil
		}
	}
	b.template = first
	for n := 2; taken[b.template]; n++ {
		b.template = first + templateNext + strconv.Itoa(n)
	}
	return Copy{}, false, nil
}

// findTemplate is pick from what is there now. With the lock held alone it makes
// sure of a template of which nothing can be told at a glance, and removes one
// that is of no use to anybody; else it does neither.
func (s *Service) findTemplate(ctx context.Context, d Disk, base *base, alone bool) (Copy, bool, room, error) {
	b := s.backend(d)
	for {
		copies, free, err := b.survey(ctx)
		if err != nil {
			return Copy{}, false, free, err
		}
		removed := false
		c, found, err := base.pick(copies, func(c Copy) (useless, gone bool, err error) {
			why, sure := c.unlike(base)
			if !sure && alone {
				why, err = s.prove(ctx, d, base, c)
			}
			if why == "" || err != nil || !alone {
				return why != "" || !sure && !alone, false, err
			}
			s.Log.Warn("a template is not what it was", "template", c.String(), "base", base.path, "why", "it "+why)
			gone, err = s.removeUseless(ctx, b, c, copies)
			removed = removed || gone
			return true, gone, err
		})
		if err != nil || !removed {
			return c, found, free, err
		}
	}
}

// removeUseless removes a template that is not what it was, unless overlays lie
// on it or somebody reads it.
func (s *Service) removeUseless(ctx context.Context, b backend, c Copy, copies map[string]Copy) (gone bool, err error) {
	if _, lying, doubt := s.needs(c, copies); lying > 0 || doubt != "" {
		return false, nil
	}
	switch err := b.remove(ctx, c); {
	case errors.Is(err, failure.Conflict):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, s.forget(c)
}

// templateNext is between the identity of a template and its number, if it is
// not the first.
const templateNext = "_"

// templateLock is the lock of all templates of the base of that one.
func templateLock(name string) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(name, templatePrefix), templateNext)
	return "template-" + templatePrefix + id
}
