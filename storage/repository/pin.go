// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/imagelock"
	"diskhook/storage/repository/format"
)

// Preparing says who is going to use an image, and how.
type Preparing struct {
	// Holder names who uses it, until ReleaseImage with the same name or a
	// reboot of this host: a domain's uuid.
	Holder string
	Write  bool
	// Dead takes the image from holders on these hosts, by their ids: the caller's word
	// that they are off, given host by host. A guest that is seen to have the image open
	// all the same keeps it.
	Dead []string
}

// Prepared is an image that may be used.
type Prepared struct {
	Path   string             `json:"path"`
	Format string             `json:"format"`
	Size   int64              `json:"size"`
	Layers []imagecheck.Layer `json:"layers"` // top first
	// Version is another one once the image's content may be another: that of a
	// snapshot never is, that of a disk with each preparation for writing.
	Version string `json:"version"`
}

// maxHolders bounds who uses an image at a time: they are in one document.
const maxHolders = 23

// PrepareImage makes an image usable on this host and keeps it from being merged,
// cleaned, resized, snapshotted, or written by others, until ReleaseImage. The same
// again is fine. ErrInUse: who wants to write has to be alone; ErrBroken;
// ErrNotDisk: a snapshot is not for writing; ErrBusy: somebody changes its volumes.
func (s *Service) PrepareImage(ctx context.Context, repoID, imageID string, p Preparing) (Prepared, error) {
	if err := checkHolder(p.Holder); err != nil {
		return Prepared{}, err
	}
	if err := checkImageID(imageID); err != nil {
		return Prepared{}, err
	}
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return Prepared{}, err
	}
	defer r.close()
	cut, again, taken, err := s.pin(ctx, r, imageID, p)
	if cut != "" {
		// A snapshot of it was promised: it goes on in a new volume first.
		if err := s.work(ctx, r, cut); err != nil {
			return Prepared{}, err
		}
		cut, again, taken, err = s.pin(ctx, r, imageID, p)
	}
	if err == nil && cut != "" {
		err = fmt.Errorf("image %s/%s: %w: a snapshot of it is being made", repoID, imageID, ErrBusy)
	}
	if err != nil {
		return Prepared{}, err
	}
	ready, err := s.usable(ctx, r, imageID, p.Write)
	if err != nil && !again { // else it is in use, whatever has become of it since
		err = errors.Join(err, s.unpin(context.WithoutCancel(ctx), r, imageID, p.Holder, taken...))
	}
	if err != nil {
		return Prepared{}, err
	}
	return ready, nil
}

// usable opens what is pinned.
func (s *Service) usable(ctx context.Context, r *repo, imageID string, write bool) (Prepared, error) {
	img, err := r.image(ctx, imageID)
	if err != nil {
		return Prepared{}, err
	}
	c, err := r.chain(ctx, img)
	if err != nil {
		return Prepared{}, err
	}
	if err := r.openVolumes(ctx, c, write); err != nil {
		return Prepared{}, err
	}
	opened, err := r.inspect(ctx, c)
	if err != nil {
		return Prepared{}, err
	}
	opened.Close()
	layers := r.layers(c)
	return Prepared{Path: layers[0].Path, Format: layers[0].Format, Size: img.Size, Layers: layers, Version: img.version()}, nil
}

// pin notes the holder; again says that he has the image already, taken who was said to be
// dead. cut is the snapshot that has to be made first.
func (s *Service) pin(ctx context.Context, r *repo, imageID string, p Preparing) (cut string, again bool, taken []holder, err error) {
	release, err := s.stayConnected(ctx, r) // whoever disconnects it sees the holder, or is done
	if err != nil {
		return "", false, nil, err
	}
	defer release()
	err = r.change(ctx, func(u *update) error {
		img, err := u.visible(ctx, imageID)
		if err != nil {
			return err
		}
		if p.Write && img.Kind != Disk {
			return fmt.Errorf("image %s/%s: %w", r.id, imageID, ErrNotDisk)
		}
		if cut, err = u.pendingCut(ctx, img); err != nil || cut != "" {
			return err
		}
		if err := u.unchanging(ctx, img, p.Write); err != nil {
			return err
		}
		holders, err := s.holders(ctx, r, imageID)
		if err != nil {
			return err
		}
		again = slices.ContainsFunc(holders, s.me(p).same)
		taken = slices.DeleteFunc(slices.Clone(holders), func(h holder) bool { return !slices.Contains(p.Dead, h.Host) })
		if holders, err = s.admit(u, img, holders, p); err != nil {
			return err
		}
		if len(taken) > 0 {
			if err := u.unopened(ctx, img, p.Write); err != nil {
				return err
			}
		}
		if err := u.put(ctx, format.Pin, imageID, pins{V: documentVersion, Image: imageID, Holders: holders}); err != nil || !p.Write {
			return err
		}
		if img.Plan != nil && img.Plan.Verb == verbOptimize {
			// It copies what is going to change; the next check finds it again.
			img.Plan = nil
		}
		return u.saveImage(ctx, img) // a new generation: copies of it begin anew
	})
	return cut, again, taken, err
}

// unopened refuses an image of which a program is seen to have the volume open, as QEMU has:
// ErrInUse. Storage without such locks, and devices, show nothing; those of a shared group open on
// one host only.
func (r *repo) unopened(ctx context.Context, img *image, write bool) error {
	c, err := r.chain(ctx, img)
	if err != nil || r.place.Capabilities().Stale {
		return err
	}
	_, err = step(ctx, r, "look for an image lock", func(context.Context) (struct{}, error) {
		f, err := os.OpenFile(r.place.Path(c[0].ID, c[0].Format), os.O_RDWR, 0)
		if err != nil {
			return struct{}{}, err
		}
		defer f.Close()
		look := imagelock.Read
		if write {
			look = imagelock.Write
		}
		return struct{}{}, look(f)
	})
	switch {
	case errors.Is(err, imagelock.ErrNoLocks), errors.Is(err, fs.ErrNotExist): // what is not there is told of next
		return nil
	case errors.Is(err, failure.Conflict):
		return fmt.Errorf("image %s/%s: %w: its host is not dead: %w", r.id, img.ID, ErrInUse, err)
	}
	return err
}

// pendingCut is the snapshot that is being made of a disk, "" if none is.
func (r *repo) pendingCut(ctx context.Context, disk *image) (string, error) {
	if disk.Cut == "" {
		return "", nil
	}
	snapshot, err := r.image(ctx, disk.Cut)
	switch {
	case errors.Is(err, ErrNoImage):
		return "", nil
	case err != nil:
		return "", err
	case snapshot.Plan == nil || snapshot.Plan.Verb != verbSnapshot || snapshot.Volume != disk.Volume:
		return "", nil
	}
	return snapshot.ID, nil
}

// unchanging refuses an image whose volumes somebody changes, or may; ErrBusy.
func (r *repo) unchanging(ctx context.Context, img *image, write bool) error {
	if err := r.undisturbed(ctx, img); err != nil {
		return err
	}
	p := img.Plan
	if p != nil && !r.safeInPlace(p) && r.place.Capabilities().Shared && (write || p.Verb == verbMerge) {
		// Who began may be silent, and wake up while a guest writes.
		err := fmt.Errorf("image %s/%s: %w: its %s is not done", r.id, img.ID, ErrBusy, img.Plan.Verb)
		return failure.Hint(err, "`diskhook image resume --wait %s/%s`", r.id, img.ID)
	}
	return nil
}

// undisturbed refuses an image of which somebody changes or copies a volume; ErrBusy.
func (r *repo) undisturbed(ctx context.Context, img *image) error {
	c, err := r.chain(ctx, img)
	if err == nil && img.Plan.creates() {
		err = fmt.Errorf("image %s/%s: %w yet", r.id, img.ID, ErrBroken)
	}
	if err != nil {
		return failure.Hint(err, "see `diskhook image status %s/%s`", r.id, img.ID)
	}
	for _, v := range c {
		held, err := step(ctx, r, "look at a lock", func(ctx context.Context) (bool, error) { return r.place.Held(ctx, volumeLock(v.ID)) })
		if err != nil {
			return err
		}
		if held {
			err := fmt.Errorf("image %s/%s: %w: volume %s is being merged or copied", r.id, img.ID, ErrBusy, v.ID)
			return failure.Hint(err, "wait, or stop that: `diskhook image tasks %s` shows it", r.id)
		}
	}
	return nil
}

// me is the holder that somebody is going to be.
func (s *Service) me(p Preparing) holder {
	return holder{Name: p.Holder, Host: s.HostID, Boot: s.BootID, Write: p.Write}
}

// same says that both are one.
func (h holder) same(other holder) bool { return h.Name == other.Name && h.Host == other.Host }

// admit adds the holder to those there are; ErrInUse. Who writes already goes on to, also
// when he asks again for less.
func (s *Service) admit(u *update, img *image, holders []holder, p Preparing) ([]holder, error) {
	if slices.Contains(p.Dead, s.HostID) {
		err := failure.New(failure.Usage, "image %s/%s: host %s is this one, and lives", u.id, img.ID, s.HostID)
		return nil, failure.Hint(err, "`diskhook image release --holder NAME %s/%s` takes it from who is here", u.id, img.ID)
	}
	holders = slices.DeleteFunc(holders, func(h holder) bool { return slices.Contains(p.Dead, h.Host) })
	me := s.me(p)
	me.Write = me.Write || slices.ContainsFunc(holders, func(h holder) bool { return h.same(me) && h.Write })
	others := slices.DeleteFunc(slices.Clone(holders), me.same)
	writer := slices.ContainsFunc(others, func(h holder) bool { return h.Write })
	if len(others) > 0 && (me.Write || writer) {
		err := u.inUse(img.ID, others)
		if first := others[0]; first.Host != s.HostID {
			err = failure.Hint(err, "%s; if that host is off, `diskhook image prepare --dead %s …` takes the image from it", failure.HintOf(err), first.Host)
		}
		return nil, err
	}
	if len(others) >= maxHolders {
		return nil, fmt.Errorf("image %s/%s: %w by %d others already", u.id, img.ID, ErrInUse, len(others))
	}
	return append(others, me), nil
}

// inUse names who uses an image.
func (r *repo) inUse(imageID string, holders []holder) error {
	var by []string
	for _, h := range holders {
		by = append(by, fmt.Sprintf("%s on host %s", h.Name, h.Host))
	}
	err := fmt.Errorf("image %s/%s: %w: by %s", r.id, imageID, ErrInUse, strings.Join(by, ", "))
	first := holders[0]
	return failure.Hint(err, "shut it down; if it has ended already, `diskhook image release --holder %s %s/%s` on host %s", first.Name, r.id, imageID, first.Host)
}

// holders are who uses an image, without those of an earlier boot of this host.
func (s *Service) holders(ctx context.Context, r *repo, imageID string) ([]holder, error) {
	doc, err := get[pins](ctx, r, format.Pin, imageID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, ErrDamaged) {
		err = failure.Hint(fmt.Errorf("image %s/%s: who uses it is not known: %w", r.id, imageID, err), "`diskhook repo check %s` shows the way out", r.id)
	}
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(doc.Holders, func(h holder) bool { return h.Host == s.HostID && h.Boot != s.BootID }), nil
}

// unused refuses an image that somebody uses; ErrInUse.
func (s *Service) unused(ctx context.Context, r *repo, imageID string) error {
	holders, err := s.holders(ctx, r, imageID)
	if err != nil || len(holders) == 0 {
		return err
	}
	return r.inUse(imageID, holders)
}

// ReleaseImage ends what PrepareImage began. That the holder does not use it is fine.
func (s *Service) ReleaseImage(ctx context.Context, repoID, imageID, holderName string) error {
	if err := checkHolder(holderName); err != nil {
		return err
	}
	if err := checkImageID(imageID); err != nil {
		return err
	}
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return err
	}
	defer r.close()
	return s.unpin(ctx, r.freeing(), imageID, holderName)
}

// unpin forgets a holder on this host; others get it back from whom he had taken it.
func (s *Service) unpin(ctx context.Context, r *repo, imageID, name string, others ...holder) error {
	return r.change(ctx, func(u *update) error {
		holders, err := s.holders(ctx, r, imageID)
		if err != nil {
			return err
		}
		left := append(slices.DeleteFunc(holders, s.me(Preparing{Holder: name}).same), others...)
		if len(left) > 0 {
			err = u.put(ctx, format.Pin, imageID, pins{V: documentVersion, Image: imageID, Holders: left})
		} else {
			err = u.drop(ctx, format.Pin, imageID)
		}
		here := slices.ContainsFunc(left, func(h holder) bool { return h.Host == s.HostID })
		if err != nil || here {
			return err
		}
		return s.closeVolumes(ctx, u, imageID)
	})
}

// closeVolumes gives up on this host the volumes of an image that nobody here uses
// any more, as far as no image that is used here has them.
func (s *Service) closeVolumes(ctx context.Context, u *update, imageID string) error {
	img, err := u.image(ctx, imageID)
	if errors.Is(err, ErrNoImage) {
		return nil
	}
	if err != nil {
		return err
	}
	c, err := u.chain(ctx, img)
	if err != nil {
		return nil //nolint:nilerr // a broken image has nothing open
	}
	used, err := s.usedHere(ctx, u)
	if err != nil {
		return err
	}
	for _, v := range c {
		if used[v.ID] {
			continue
		}
		if err := u.closeVolume(ctx, format.Data{ID: v.ID, Kind: v.Format}); err != nil {
			return err
		}
	}
	return nil
}

func checkHolder(name string) error {
	const most = 64
	bad := strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
	if name == "" || len(name) > most || bad {
		return failure.New(failure.Usage, "holder %q: 1 to %d visible characters", clip(name), most)
	}
	return nil
}
