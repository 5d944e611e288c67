// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/xmlrewrite"
)

// Bound is a disk with the binding that counts for it.
type Bound struct {
	Disk    Disk
	Binding Binding
	// Recorded is the disk's entry in the metadata; nil if it has none.
	Recorded *xmlrewrite.BoundDisk
}

// Kept names what keeps the disk's data whether or not the domain is there, and
// is the disk itself: "volume ID", "image REPO/ID"; "" where the binding says how
// to make a disk of something else.
func (b Bound) Kept() string {
	if k, err := kindOf(b.Binding.Kind); err == nil {
		if keeper, keeps := k.(keeper); keeps {
			return keeper.kept(b.Binding)
		}
	}
	return ""
}

// KeptBy is Bound.Kept of an entry of the metadata.
func KeptBy(entry xmlrewrite.BoundDisk) string {
	_, b, _ := recordedKind(entry)
	return Bound{Binding: b}.Kept()
}

// IsKept says whether an entry of the metadata, of whichever domain, is bound to what
// keeps the data of b.
func (b Bound) IsKept(entry xmlrewrite.BoundDisk) bool {
	k, other, ok := recordedKind(entry)
	return ok && k.Name() == b.Binding.Kind && b.Kept() == Bound{Binding: other}.Kept()
}

// keeper is a kind that keeps data under names of its own.
type keeper interface{ kept(Binding) string }

// completer is a kind whose bindings may leave it to the host what they mean.
type completer interface {
	complete(*Host, Binding) (Binding, error)
}

// complete fills in what bindings leave to the host, so that what is recorded of them
// means the same on every host.
func (h *Host) complete(d Domain, bound []Bound) error {
	for i, b := range bound {
		k, err := kindOf(b.Binding.Kind)
		if err != nil {
			return err
		}
		c, is := k.(completer)
		if !is || b.Recorded != nil {
			continue
		}
		if bound[i].Binding, err = c.complete(h, b.Binding); err != nil {
			return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
	}
	return nil
}

// apart refuses one thing as two disks: a guest would write to both.
func apart(d Domain, bound []Bound) error {
	disks := map[string]string{}
	for _, b := range bound {
		what := b.Kept()
		if other, twice := disks[what]; twice && what != "" {
			err := failure.New(failure.Conflict, "%s: disks %s and %s are both %s", d, other, b.Disk.Target, what)
			kind, _, _ := strings.Cut(what, " ")
			return failure.Hint(err, "give one of both %s of its own with `virsh edit %s`", article(kind), d.NameArg())
		}
		disks[what] = b.Disk.Target
	}
	return nil
}

func article(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

// Skipped is a disk that a binding for all disks passed over.
type Skipped struct{ Target, Why string }

// Resolve settles which disks of d are bound to what. written are the bindings
// of flags, properties and rules; those of the metadata come with d. A disk
// that is named but cannot be bound, a name that no disk has, and a property
// that contradicts the metadata are errors.
func Resolve(d Domain, written []Binding) ([]Bound, []Skipped, error) {
	if err := allMeant(d, written); err != nil {
		return nil, nil, err
	}
	var bound []Bound
	var skipped []Skipped
	for _, disk := range d.Disks {
		recorded, _ := d.Metadata.Disk(disk.Target)
		candidates := candidatesFor(disk, written)
		if recorded != nil {
			b, err := fromMetadata(d, recorded)
			if err != nil {
				return nil, nil, err
			}
			candidates = append(candidates, b)
		}
		if b, named := disk.byPath(); named {
			candidates = append(candidates, b)
		}
		b, found, err := settle(d, disk, candidates)
		switch {
		case err != nil:
			return nil, nil, err
		case !found:
			continue
		}
		kind, err := kindOf(b.Kind)
		if err != nil {
			return nil, nil, err
		}
		switch unfit := kind.Unfit(disk); {
		case unfit == "" || recorded != nil:
			bound = append(bound, Bound{disk, b, recorded})
		case b.Named():
			err := failure.New(failure.Usage, "%s: disk %s: the %s binds it to %s, but %s", d, disk.Target, b.From, b.Kind, unfit)
			return nil, nil, failure.Hint(err, "take %s out of the %s", b.Select, b.From)
		default:
			skipped = append(skipped, Skipped{disk.Target, unfit})
		}
	}
	return bound, skipped, nil
}

// allMeant refuses a name that no disk has: a typing error would otherwise
// leave a disk where it must not be.
func allMeant(d Domain, written []Binding) error {
	if d.Partial {
		return nil
	}
	for _, b := range written {
		if !b.Named() || slices.ContainsFunc(d.Disks, func(disk Disk) bool { return disk.is(b.Select) }) {
			continue
		}
		err := failure.New(failure.NotFound, "%s: the %s binds the disk %s, but no disk has this target or serial", d, b.From, b.Select)
		return failure.Hint(err, "take it out of the %s, or name one of the domain's disks", b.From)
	}
	return nil
}

func candidatesFor(disk Disk, written []Binding) []Binding {
	var fitting []Binding
	for _, b := range written {
		if !b.Named() || disk.is(b.Select) {
			fitting = append(fitting, b)
		}
	}
	return fitting
}

// settle picks the binding that counts: by spelling, and within one, that
// which names the disk. Those of equal rank, and property and metadata, must
// not contradict each other; what one leaves open the next fills in.
func settle(d Domain, disk Disk, candidates []Binding) (Binding, bool, error) {
	if len(candidates) == 0 {
		return Binding{}, false, nil
	}
	slices.SortStableFunc(candidates, func(a, b Binding) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(rank(a), rank(b)))
	})
	first := candidates[0]
	for _, b := range candidates[1:] {
		sameRank := b.From == first.From && rank(b) == rank(first)
		mustAgree := sameRank || first.From == Property && b.From == Metadata
		if !mustAgree {
			continue
		}
		if what := first.contradicts(b); what != "" {
			err := failure.New(failure.Conflict, "%s: disk %s: %s (%s) and %s (%s) disagree on %s", d, disk.Target, first, first.From, b, b.From, what)
			return Binding{}, false, failure.Hint(err, "%s", agree(d, b))
		}
		first = first.withDefaults(b)
	}
	return first, true, nil
}

func agree(d Domain, b Binding) string {
	if b.From == Metadata {
		return fmt.Sprintf("correct the property, or run `diskhook domain unbind %s`", d.NameArg())
	}
	return "keep one of the two"
}

func rank(b Binding) int {
	if b.Named() {
		return 0
	}
	return 1
}

// withDefaults takes from o what b leaves open.
func (b Binding) withDefaults(o Binding) Binding {
	b.Value = cmp.Or(b.Value, o.Value)
	options := map[string]string{}
	for _, from := range []Binding{o, b} {
		for name, v := range from.Options {
			options[name] = v
		}
	}
	b.Options = options
	return b
}

// fromMetadata is the binding that an entry of the metadata spells.
func fromMetadata(d Domain, r *xmlrewrite.BoundDisk) (Binding, error) {
	fail := func(what string) error {
		err := failure.New(failure.Precondition, "%s: disk %s: its metadata %s", d, failure.OneLine(clip(r.Target)), what)
		return failure.Hint(err, "install the diskhook that wrote it, or run `diskhook domain unbind %s`", d.NameArg())
	}
	if len(r.Unknown) > 0 {
		return Binding{}, fail("has " + failure.OneLine(clip(r.Unknown[0])) + ", which a newer diskhook wrote")
	}
	_, b, known := recordedKind(*r)
	if !known || r.OriginImage != nil && r.Local == nil || r.OriginThin != nil {
		return Binding{}, fail("bind it to a kind of storage that this diskhook does not have")
	}
	if err := b.check(); err != nil {
		return b, fmt.Errorf("%s: disk %s: metadata: %w", d, failure.OneLine(clip(r.Target)), err)
	}
	return b, nil
}

// FromRules returns the bindings that the configuration's rules have for d,
// one per disk: the first rule that fits. Only rewrite and apply ask for it.
func FromRules(rules []host.Rule, d Domain) ([]Binding, error) {
	var all []Binding
	for _, disk := range d.Disks {
		for i, r := range rules {
			if !fits(r.Name, d.Name) || !fits(r.Target, disk.Target) || !fits(r.Path, disk.Path) || disk.Unfit != "" {
				continue
			}
			b, err := ruleBinding(i, r)
			if err != nil {
				return nil, err
			}
			b.Select = disk.Target
			all = append(all, b)
			break
		}
	}
	return all, nil
}

// CheckRules says which rule could not bind a disk if it fitted one; a
// failure.Usage.
func CheckRules(rules []host.Rule) error {
	for i, r := range rules {
		if _, err := ruleBinding(i, r); err != nil {
			return err
		}
	}
	return nil
}

func ruleBinding(i int, r host.Rule) (Binding, error) {
	bindings, err := Parse(fmt.Sprintf("rule %d", i+1), r.Binding, Rule)
	if err != nil {
		return Binding{}, err
	}
	if len(bindings) != 1 || bindings[0].Named() {
		err := failure.New(failure.Usage, "rule %d: %q: a rule has one binding, without a disk", i+1, clip(r.Binding))
		return Binding{}, failure.Hint(err, "write it like local=lvmthin,on-stop=keep")
	}
	return bindings[0], nil
}

func fits(glob, s string) bool {
	ok, err := filepath.Match(glob, s)
	return glob == "" || ok && err == nil
}
