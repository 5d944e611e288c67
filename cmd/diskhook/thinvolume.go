// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/thin/claim"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/member"
)

func thinVolumeVerbs(p *program) []*cli.Command {
	return []*cli.Command{
		p.memberVerb("create", "make an empty volume", "VOLUME SIZE", thinCreate),
		p.memberVerb("attach", "give this host a volume, as a device", "VOLUME", thinAttach,
			&cli.BoolFlag{Name: "suspect", Usage: "also one whose last writes may be lost"}),
		p.memberVerb("detach", "give a volume of this host back", "VOLUME", thinDetach,
			&cli.StringFlag{Name: "domain", Usage: "also one that the domain `UUID` has, which is gone"}),
		p.memberVerb("snapshot", "make a volume that has what one of this host has now", "VOLUME NEW", thinSnapshot),
		p.memberVerb("clone", "make a volume that has what an offline one has", "VOLUME NEW", thinClone),
		p.memberVerb("delete", "delete an offline volume and what it holds", "VOLUME", thinDelete),
		p.memberVerb("resize", "make a volume larger", "VOLUME SIZE", thinResize),
	}
}

// thinVolumeArgs is what a verb on one volume begins with.
func thinVolumeArgs(p *program, c *cli.Context, more ...string) (format, *thinMember, layout.VolumeRecord, []string, error) {
	f, t, words, err := thinMemberArgs(p, c, append([]string{"VOLUME"}, more...)...)
	if err != nil {
		return f, nil, layout.VolumeRecord{}, nil, err
	}
	v, err := cluster.Volume(t.known, words[0])
	return f, t, v, words, err
}

// validVolume refuses what no volume may be called.
func validVolume(name string) error {
	if layout.ValidName(name) {
		return nil
	}
	err := failure.New(failure.Usage, "%q is no name for a volume", name)
	return failure.Hint(err, "use letters, digits, dot, _ and -, at most 63 of them")
}

// newVolume refuses a name that another volume has.
func (t *thinMember) newVolume(name string) error {
	if err := validVolume(name); err != nil {
		return err
	}
	if v, err := cluster.Volume(t.known, name); err == nil {
		err := failure.New(failure.Conflict, "volume %s: there is one already, %s of %d bytes", name, v.UUID, v.Size)
		return failure.Hint(err, "see `diskhook thin status`")
	}
	return nil
}

// thinSize is a volume's size in bytes, of whole sectors.
func thinSize(text string) (uint64, error) {
	n, err := host.ParseSize(text)
	if err == nil && (n <= 0 || n%512 != 0) {
		err = failure.New(failure.Usage, "size %q: not a positive number of whole sectors of 512 bytes", text)
	}
	return uint64(n), err
}

func thinCreate(p *program, c *cli.Context) error {
	f, t, words, err := thinMemberArgs(p, c, "VOLUME", "SIZE")
	if err != nil {
		return err
	}
	bytes, err := thinSize(words[1])
	if err != nil {
		return err
	}
	var steps []string
	// One of this name and size is the one that an earlier try made.
	if v, known := cluster.Volume(t.known, words[0]); known != nil || v.Size != bytes {
		if err := t.newVolume(words[0]); err != nil {
			return err
		}
		steps = t.ask("create volume %s of %d bytes", words[0], bytes)
	}
	return t.change(p, c, f, thinVolume(words[0]), steps, func(ctx context.Context) (string, error) {
		return "created", t.Create(ctx, uuid.New(), words[0], bytes)
	})
}

func thinAttach(p *program, c *cli.Context) error {
	f, t, v, _, err := thinVolumeArgs(p, c)
	if err != nil {
		return err
	}
	here := v.State.On() && v.Host == t.record.Number
	switch {
	case v.State == layout.Suspect && !c.Bool("suspect"):
		err := failure.New(failure.Precondition, "volume %s: it is suspect: what its host wrote last may be lost", v.Name)
		return failure.Hint(err, "export and examine it, then run `diskhook thin attach --suspect %s`", v.Name)
	case !here && v.State != layout.Suspect:
		// What the master would refuse, but for what the stored mapping says.
		if _, err := ledger.BeginAttach(t.known, v.Number, t.record.Number, layout.Mapping{}); err != nil {
			return err
		}
	}
	if !here && c.Bool("dry-run") {
		if err := t.Ready(c.Context); err != nil {
			return err
		}
	}
	// One that is here already is made sure of, which costs nothing to repeat.
	steps := t.ask("attach volume %s to host %s as %s", v.Name, t.record.Name, t.Path(v.Name))
	if v.State == layout.Attached && here && c.Bool("dry-run") {
		steps = nil
	}
	var device string
	of := thinVolume(v.Name)
	of.result = func() any { return map[string]string{"path": device} }
	return t.change(p, c, f, of, steps, func(ctx context.Context) (string, error) {
		device, err = t.Attach(ctx, v.Name, member.AttachOptions{Suspect: c.Bool("suspect")})
		return "attached as " + device, err
	})
}

func thinDetach(p *program, c *cli.Context) error {
	gone := c.String("domain")
	if gone != "" && !host.IsUUID(gone) {
		return see(c, failure.New(failure.Usage, "--domain %q: not a UUID", gone))
	}
	f, t, v, _, err := thinVolumeArgs(p, c)
	if gone != "" && t == nil && (errors.Is(err, cluster.ErrNoMember) || errors.Is(err, failure.NotFound)) {
		return thinDisown(p, c, gone)
	}
	if err != nil {
		return err
	}
	switch domain, err := t.Claims.Holder(v.Name); {
	case err != nil:
		return err
	case domain != "" && domain != gone:
		return claim.Refuse(v.Name, domain)
	}
	if err := t.Labels.Labelled(v.Name); err != nil {
		return err
	}
	var steps []string
	if v.State.On() {
		if v.Host != t.record.Number {
			at := cluster.NameOf(t.known, v.Host)
			err := failure.New(failure.Conflict, "volume %s: it is at host %s", v.Name, at)
			return failure.Hint(err, "run this on that host; if it is lost, have it fenced, then run `diskhook thin recover %s` on the master", at)
		}
		if c.Bool("dry-run") {
			if err := t.Unused(c.Context, v.Name); err != nil {
				return err
			}
		}
		steps = t.ask("detach volume %s from host %s", v.Name, cluster.NameOf(t.known, v.Host))
	}
	return t.change(p, c, f, thinVolume(v.Name), steps, func(ctx context.Context) (string, error) {
		return "detached", t.DetachFrom(ctx, v.Name, gone)
	})
}

// thinDisown is thinDetach on a host that is no member any more, so that it can be
// stopped.
func thinDisown(p *program, c *cli.Context, domain string) error {
	f, t, words, err := thinArgs(p, c, "VOLUME")
	if err != nil {
		return err
	}
	here, err := t.local()
	if err != nil {
		return err
	}
	var steps []string
	switch holder, err := here.Claims.Holder(words[0]); {
	case err != nil:
		return err
	case holder != "" && holder != domain:
		return claim.Refuse(words[0], holder)
	case holder != "":
		steps = []string{"# end the claim of domain " + domain + " on volume " + words[0]}
	}
	return p.change(f, c.Bool("dry-run"), thinVolume(words[0]), steps, func() (string, error) {
		return "domain " + domain + " has it no more; there is nothing to be detached, as this host is no member", here.Disown(c.Context, words[0], domain)
	})
}

func thinSnapshot(p *program, c *cli.Context) error {
	refuses := func(t *thinMember, v layout.VolumeRecord) error {
		if v.State == layout.Attached && v.Host == t.record.Number {
			return nil
		}
		err := failure.New(failure.Precondition, "volume %s: it is not attached to this host", v.Name)
		return failure.Hint(err, "run `diskhook thin clone` while it is offline, or this on the host that has it")
	}
	return thinCopy(p, c, copyVerb{"snapshot", true, refuses, func(ctx context.Context, t *thinMember, of, name string) error {
		return t.Snapshot(ctx, of, uuid.New(), name)
	}})
}

func thinClone(p *program, c *cli.Context) error {
	refuses := func(t *thinMember, v layout.VolumeRecord) error {
		if v.State == layout.Attached && v.Host == t.record.Number {
			return nil // by a snapshot
		}
		_, _, _, err := ledger.Clone(t.known, v.Number, uuid.New(), "clone-of-"+v.UUID.String())
		return err
	}
	return thinCopy(p, c, copyVerb{"clone", false, refuses, func(ctx context.Context, t *thinMember, of, name string) error {
		return t.Clone(ctx, of, uuid.New(), name)
	}})
}

// copyVerb is a verb that makes a volume of another.
type copyVerb struct {
	verb     string
	snapshot bool // and never by the master alone
	refuses  func(*thinMember, layout.VolumeRecord) error
	act      func(ctx context.Context, t *thinMember, of, name string) error
}

func thinCopy(p *program, c *cli.Context, by copyVerb) error {
	f, t, v, words, err := thinVolumeArgs(p, c, "NEW")
	if err != nil {
		return err
	}
	name, ended := words[1], "made of "+v.Name
	steps := t.ask("%s volume %s as %s", by.verb, v.Name, name)
	switch before, err := t.madeBefore(c.Context, v, name, by.snapshot); {
	case err != nil:
		return err
	case before != nil:
		ended += " by an earlier try, which asked at " + before.Asked.Format(time.RFC3339)
		if c.Bool("dry-run") {
			steps = nil
		}
	default:
		if err := t.newVolume(name); err != nil {
			return err
		}
		if err := by.refuses(t, v); err != nil {
			return err
		}
		if c.Bool("dry-run") && v.State == layout.Attached { // here, and so by the pool
			if err := t.Ready(c.Context); err != nil {
				return err
			}
		}
	}
	return t.change(p, c, f, thinVolume(name), steps, func(ctx context.Context) (string, error) {
		return ended, by.act(ctx, t, v.Name, name)
	})
}

// madeBefore is the volume of a name, if it is there because an earlier verb, which
// was not told so, made it of v.
func (t *thinMember) madeBefore(ctx context.Context, v layout.VolumeRecord, name string, snapshot bool) (*member.Made, error) {
	if _, err := cluster.Volume(t.known, name); err != nil {
		return nil, nil //nolint:nilerr // there is none
	}
	u, err := t.Untold(ctx)
	if err != nil {
		return nil, err
	}
	return u.Made(v, name, snapshot), nil
}

func thinDelete(p *program, c *cli.Context) error {
	f, t, words, err := thinMemberArgs(p, c, "VOLUME")
	if err != nil {
		return err
	}
	v, err := cluster.Volume(t.known, words[0])
	steps := t.ask("delete volume %s and what it holds", words[0])
	switch {
	case errors.Is(err, failure.NotFound):
		// An earlier try may have deleted it, and not know it.
		u, failed := t.Untold(c.Context)
		switch {
		case failed != nil:
			return failed
		case !u.Deleted(words[0]):
			return err
		case c.Bool("dry-run"):
			steps = nil
		}
		v.Name = words[0]
	case err != nil:
		return err
	default:
		if err := t.Labels.Labelled(v.Name); err != nil {
			return err
		}
		if _, err := ledger.Delete(t.known, v.Number); err != nil {
			return err
		}
	}
	return t.change(p, c, f, thinVolume(v.Name), steps, func(ctx context.Context) (string, error) {
		return "deleted", t.Delete(ctx, v.Name)
	})
}

func thinResize(p *program, c *cli.Context) error {
	f, t, v, words, err := thinVolumeArgs(p, c, "SIZE")
	if err != nil {
		return err
	}
	bytes, err := thinSize(words[1])
	if err != nil {
		return err
	}
	if _, err := ledger.Resize(t.known, v.Number, bytes); err != nil {
		return err
	}
	var steps []string
	if bytes != v.Size {
		steps = t.ask("resize volume %s from %d to %d bytes", v.Name, v.Size, bytes)
	}
	return t.change(p, c, f, thinVolume(v.Name), steps, func(ctx context.Context) (string, error) {
		return fmt.Sprintf("resized to %s", size(int64(bytes))), t.Resize(ctx, v.Name, bytes)
	})
}
