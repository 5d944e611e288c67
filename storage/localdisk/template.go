// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// A template is a copy of a base, the lowest image of a backing chain of two or
// more. It is made once per host and home, and never handed to a domain: the
// copies of disks with that base are clones of it, onto which only the disk's
// own images are copied. It goes through the states of a copy, under a lock of
// its own:
//
//	absent ──create──▶ updating ──copy, flush, read-only──▶ ready
//
// Only a ready one is cloned, by who shares that lock; see heldTemplate. What a
// clone shares with it is the storage's business from then on; see templates.
// Its name is its identity: a base that was replaced or written to has another
// one, and the template of what it was grows old. A template that was written to
// is followed by one with a number behind its name; see seal.

// templatePrefix begins the names of templates, which are no copies: ids
// follow copyPrefix.
const templatePrefix = "dhbase_"

// The tags of a template beside UPDATING, and the one of a clone.
const (
	tagTemplate = "DH_base"
	tagClone    = "DH_base_" // the identity of the template, on its clones
	tagLastUse  = "DH_used_" // days since 1970, changed once a day at most
	tagFrom     = "DH_from_" // the path of the base it was made of, as far as a tag can hold it
)

// base is the lowest image of a chain.
type base struct {
	*imagecheck.Opened
	path     string // as declared
	template string // the name of its template
}

// templateOf opens the base of the source of d, unless a template is of no use
// to it: then why says so. The base is closed by the caller.
func (s *Service) templateOf(ctx context.Context, d Disk, source *imagecheck.Opened) (_ *base, why string, err error) {
	if why := s.cacheless(ctx, d, source); why != "" {
		return nil, why, nil
	}
	lowest := len(d.Source) - 1
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	opened, err := s.checker(d).Open(ctx, d.Source[lowest:])
	if err != nil {
		return nil, "", err
	}
	b := &base{Opened: opened, path: d.Source[lowest].Path}
	switch same, block, err := compare(opened.Files[0], source.Files[lowest]); {
	case err != nil:
		opened.Close()
		return nil, "", err
	case !same:
		opened.Close()
		err := failure.New(failure.Conflict, "%s: was replaced just now", b.path)
		return nil, "", failure.Hint(err, "start again")
	case block:
		// Not oVirt's either: a merge of snapshots writes to a volume that keeps
		// its id, and nothing but its data would show it.
		why = "its base is a block device, of which cannot be told when it is written to"
	case opened.VirtualSize > source.VirtualSize:
		why = "its base is larger than the disk"
	}
	if why != "" {
		opened.Close()
		return nil, why, nil
	}
	b.template = templatePrefix + b.identity(s.backend(d).templateHome())
	return b, "", nil
}

// cacheless is why no template is looked for.
func (s *Service) cacheless(ctx context.Context, d Disk, source *imagecheck.Opened) string {
	switch {
	case len(source.Layers) < 2:
		return "its source is one image"
	case s.Config.Local.Cache == "off":
		return "[local] cache is off"
	case d.Template:
		return "" // an overlay is no clone, and can lie on a template anywhere
	}
	return s.backend(d).cloneless(ctx)
}

func compare(a, b *os.File) (same, block bool, err error) {
	x, err := a.Stat()
	if err != nil {
		return false, false, err
	}
	y, err := b.Stat()
	if err != nil {
		return false, false, err
	}
	return os.SameFile(x, y), x.Mode()&os.ModeDevice != 0, nil
}

// identity is what the base is, as far as can be told without reading all of
// it, and where its template is. Of the path only the last part counts: oVirt
// names the volume of a template by another directory for each disk, but always
// by its id. Device numbers change with a reboot.
func (b *base) identity(home string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "diskhook.template/v1\n%s\n%s\n%d\n%s\n", filepath.Base(b.path), b.Fingerprint, b.VirtualSize, home))
	return hex.EncodeToString(sum[:16])
}

// isTemplate says whether a copy that a backend found is a template, ready or
// not, by name and tag.
func isTemplate(c Copy) bool {
	return validTemplate(c.Name) && c.has(tagTemplate)
}

func validTemplate(name string) bool {
	id, ok := strings.CutPrefix(name, templatePrefix)
	id, n, numbered := strings.Cut(id, templateNext)
	if numbered && (len(n) == 0 || len(n) > 4 || strings.Trim(n, "0123456789") != "") {
		return false
	}
	return ok && len(id) == 32 && strings.IndexFunc(id, func(r rune) bool { return notHex(r) || r == '-' }) < 0
}

// cloneTag is on the clones of a template.
func cloneTag(template string) string { return tagClone + strings.TrimPrefix(template, templatePrefix) }

// cloned is the tags of a clone that say so; they stay with it.
func cloned(c Copy) []string {
	return slices.DeleteFunc(slices.Clone(c.Tags), func(t string) bool { return !strings.HasPrefix(t, tagClone) })
}

// lowest is the template that the tags of a copy name; "" is none.
func lowest(c Copy) (name string) {
	for _, tag := range cloned(c) {
		name = templatePrefix + strings.TrimPrefix(tag, tagClone)
	}
	return name
}

// present is how many of the lowest images of its source the copy has from its
// beginning, see transfer.Source.
func present(c Copy) int { return min(1, len(cloned(c))) }

// fromTag is a path in the words of a tag: what LVM takes in none is "+XX", and
// an end that is too long is cut off.
func fromTag(path string) string {
	const most = 512
	tag := tagFrom
	for _, c := range []byte(path) {
		switch {
		case len(tag) > most:
			return tag
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("/._-", c) >= 0:
			tag += string(c)
		default:
			tag += fmt.Sprintf("+%02X", c)
		}
	}
	return tag
}

// fromPath is the reverse of fromTag.
func fromPath(tags []string) string {
	for _, t := range tags {
		text, ok := strings.CutPrefix(t, tagFrom)
		if !ok {
			continue
		}
		parts := strings.Split(text, "+")
		path := parts[0]
		for _, p := range parts[1:] {
			if len(p) < 2 {
				break
			}
			c, err := strconv.ParseUint(p[:2], 16, 8)
			if err != nil {
				break
			}
			path += string([]byte{byte(c)}) + p[2:]
		}
		return path
	}
	return ""
}

const day = 24 * time.Hour

// usedTag is the tag of today.
func usedTag(now time.Time) string {
	return tagLastUse + strconv.FormatInt(now.Unix()/int64(day/time.Second), 10)
}

// lastUse is the day that the tags name; the zero time is none.
func lastUse(tags []string) (last time.Time) {
	for _, t := range tags {
		if at, ok := usedOn(t); ok && at.After(last) {
			last = at
		}
	}
	return last
}

// usedOn is the reverse of usedTag.
func usedOn(tag string) (time.Time, bool) {
	text, ok := strings.CutPrefix(tag, tagLastUse)
	days, err := strconv.ParseInt(text, 10, 32)
	return time.Unix(days*int64(day/time.Second), 0).UTC(), ok && err == nil
}
