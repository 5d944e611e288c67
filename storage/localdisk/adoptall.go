// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
)

// Adoption is a volume that oVirt's own hook made, or seems to have, and what
// it becomes.
type Adoption struct {
	Volume  string `json:"volume"` // "lv VG/NAME"
	Domain  string `json:"domain,omitempty"`
	Image   string `json:"image,omitempty"`
	Backend string `json:"backend"`
	Bytes   int64  `json:"bytes"`
	// Take says that AdoptOVirt takes it over; Reason why, or why not.
	Take   bool   `json:"take"`
	Reason string `json:"reason"`

	name string
}

// Adoptions looks at every volume of the group that is not diskhook's and has
// anything of oVirt's hook: a UUID for its name, or its tags. It changes nothing.
//
// The hook names a volume by the id of the leaf volume that it copied, and tags
// it VM_ and IU_ with the ids of VM and image. It has no tag for the target:
// Engine hands out targets anew at every start.
func (s *Service) Adoptions(ctx context.Context) ([]Adoption, error) {
	b := newVolumes(s, "").(*volumes)
	report, err := b.report(ctx)
	if err != nil {
		return nil, err
	}
	var all []Adoption
	var copies []Copy
	for _, lv := range report.LVs {
		c := b.describe(report, lv)
		if c.ours() || strings.HasPrefix(c.Name, copyPrefix) || !host.IsUUID(c.Name) && !c.hasPrefix(tagVM) && !c.hasPrefix(tagImage) {
			continue
		}
		a := Adoption{
			Volume: c.String(), Domain: tagged(c, tagVM), Image: tagged(c, tagImage), Backend: "lvm", Bytes: c.Size, name: c.Name,
		}
		if lv.Pool != "" {
			a.Backend = "lvmthin"
		}
		all, copies = append(all, a), append(copies, c)
	}
	for i := range all {
		all[i].Take, all[i].Reason = s.mayAdopt(all[i], copies[i], all)
	}
	return all, nil
}

func (c Copy) hasPrefix(prefix string) bool {
	return slices.ContainsFunc(c.Tags, func(t string) bool { return strings.HasPrefix(t, prefix) })
}

// mayAdopt says whether the volume c is beyond doubt the disk that its tags
// name. others are all that were found.
func (s *Service) mayAdopt(a Adoption, c Copy, others []Adoption) (take bool, reason string) {
	if reason := oddVolume(c); reason != "" {
		return false, reason
	}
	for _, o := range others {
		if o.name != a.name && o.Domain == a.Domain && o.Image == a.Image {
			return false, o.Volume + " is of the same disk; which of them its guest uses cannot be told"
		}
	}
	held, err := lock.Held(s.Layout.Locks(), lockName(a.Domain, a.Image))
	if err != nil {
		return false, failure.OneLine(err.Error())
	}
	if held {
		return false, "somebody works on the disk"
	}
	return s.unclaimed(a, c)
}

// oddVolume is why a volume cannot be one that oVirt's hook completed; "" is
// that it can.
func oddVolume(c Copy) string {
	for _, tag := range []struct{ prefix, what string }{{tagVM, "VM"}, {tagImage, "image"}} {
		var ids []string
		for _, t := range c.Tags {
			if id, ok := strings.CutPrefix(t, tag.prefix); ok {
				ids = append(ids, id)
			}
		}
		if len(ids) != 1 || !host.IsUUID(ids[0]) {
			return fmt.Sprintf("its tags do not name one %s by its id: %s", tag.what, failure.OneLine(strings.Join(c.Tags, " ")))
		}
	}
	switch {
	case !host.IsUUID(c.Name):
		return "its name is not the id of a volume"
	case c.State != Ready:
		return "unfinished: the VM's next start makes it again, or `diskhook local gc` takes it"
	case c.Sick != "":
		return "it is not well: " + c.Sick
	case !c.closed():
		return "it is open, or may be: shut the VM down"
	}
	return ""
}

// unclaimed: a receipt of the disk is either that of an adoption that did not
// end, or of another copy.
func (s *Service) unclaimed(a Adoption, c Copy) (take bool, reason string) {
	r, err := ReadReceipt(s.Layout, a.Domain, a.Image)
	switch {
	case err != nil:
		return false, failure.OneLine(err.Error())
	case r == nil:
		return true, "a complete copy, made by oVirt's hook"
	case r.Copy == c.UUID && r.Used && !r.Discarding:
		return true, "it has its receipt, and lacks its tags only"
	}
	return false, "the disk's receipt names another copy, " + failure.OneLine(r.Home+"/"+r.Name)
}

// AdoptOVirt takes a volume over that Adoptions found, after another look: its
// guest may have written to it, so the receipt, which says used, is durable
// before the tags. What cannot be adopted by now is a failure.Conflict.
func (s *Service) AdoptOVirt(ctx context.Context, a Adoption) error {
	if !a.Take {
		return failure.New(failure.Conflict, "%s: is left alone: %s", a.Volume, a.Reason)
	}
	machine, err := s.Layout.MachineID()
	if err != nil {
		return failure.Hint(failure.Wrap(failure.Precondition, err), "run `systemd-machine-id-setup`")
	}
	l, err := s.lockOne(ctx, a.Domain, a.Image)
	if err != nil {
		return err
	}
	defer l.Release()
	b := newVolumes(s, "").(*volumes)
	copies, err := b.find(ctx)
	if err != nil {
		return err
	}
	c, there := copies[a.name]
	reason := "it is gone"
	if there {
		reason = oddVolume(c)
	}
	take := false
	switch {
	case reason != "":
	case tagged(c, tagVM) != a.Domain || tagged(c, tagImage) != a.Image:
		reason = "its tags are others"
	default:
		take, reason = s.unclaimed(a, c)
	}
	if !take {
		return failure.New(failure.Conflict, "%s: it changed meanwhile: %s", a.Volume, reason)
	}
	o := Observed{Disk: a.disk(), Copy: c, Machine: machine}
	if r, err := ReadReceipt(s.Layout, a.Domain, a.Image); err != nil || r != nil {
		if err != nil {
			return err
		}
		return s.finishClaim(ctx, o)
	}
	return s.claim(ctx, o, imagecheck.Info{VirtualSize: c.Size})
}

// disk is what the volume tells of its disk. Until the VM starts nobody knows a
// target: the id of the image stands for it.
func (a Adoption) disk() Disk {
	return Disk{
		Domain: a.Domain, Target: strings.ReplaceAll(a.Image, "-", ""), Image: a.Image, Volume: a.name,
		Backend: a.Backend, OnStop: Keep,
	}
}

// Adopted says that the disk has its copy and its receipt, and that nothing of
// taking it over is left to do. What Adopt would refuse is an error.
func (s *Service) Adopted(ctx context.Context, d Disk) (bool, error) {
	if err := d.Validate(); err != nil {
		return false, err
	}
	observed, err := s.observe(ctx, []Disk{d}, func(Disk) (bool, error) { return false, nil })
	if err != nil {
		return false, err
	}
	o := observed[0]
	named := o.Receipt != nil && !o.Receipt.Discarding && o.Receipt.Copy == o.Copy.UUID
	if named && o.Copy.State == Ready && o.Copy.Sick == "" && o.Copy.ours() {
		return true, nil
	}
	if err := s.Idle(ctx, d.Domain, d.Key()); err != nil {
		return false, err
	}
	o.Copy = s.asFileOpen(o.Copy)
	if err := adoptable(o); err != nil || !o.Copy.file() {
		return false, err
	}
	_, err = s.adopted(ctx, &o) // which activates volumes
	return false, err
}

// finishClaim gives a copy that has its receipt the tags that say that it is
// ours: whoever took it over was stopped in between.
func (s *Service) finishClaim(ctx context.Context, o Observed) error {
	if o.Copy.ours() {
		return nil
	}
	return s.backend(o.Disk).claim(ctx, o.Disk, o.Copy, o.Machine)
}
