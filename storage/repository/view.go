// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"sync"

	"diskhook/storage/repository/format"
)

// view is all documents of a repository, read without any lock: unless the caller
// holds it, what was found may have changed, and belong to different moments. What
// is read first is what later documents vouch for: a volume whose image is not seen
// was given up before, or is new.
type view struct {
	data       []format.Data
	volumes    map[string]*volume
	images     map[string]*image
	operations []string
	stops      []string
	pins       map[string]*pins
	damaged    []error
	lost       map[format.Kind][]string // whose documents are damaged
	noFiles    map[format.Kind][]string // those of them in whose place something else is, which no fix takes
	aside      []string                 // whose damaged documents were put aside, and wrecks
	wrecks     []format.Wreck
	newer      map[string]bool // volumes that were made after the scan; see refresh
}

// scan reads everything.
func (r *repo) scan(ctx context.Context) (*view, error) {
	v := &view{lost: map[format.Kind][]string{}, noFiles: map[format.Kind][]string{}}
	var err error
	if v.data, err = step(ctx, r, "list", r.place.Data); err != nil {
		return nil, err
	}
	if v.volumes, err = all[volume](ctx, r, format.Volume, v); err != nil {
		return nil, err
	}
	if v.operations, err = r.list(ctx, format.Operation); err != nil {
		return nil, err
	}
	if v.stops, err = r.list(ctx, format.Stop); err != nil {
		return nil, err
	}
	if v.images, err = all[image](ctx, r, format.Image, v); err != nil {
		return nil, err
	}
	if v.pins, err = all[pins](ctx, r, format.Pin, v); err != nil {
		return nil, err
	}
	if v.aside, err = r.list(ctx, format.Aside); err != nil {
		return nil, err
	}
	return v, r.wrecked(ctx, v)
}

// wrecked notes what else is damaged.
func (r *repo) wrecked(ctx context.Context, v *view) (err error) {
	v.wrecks, err = step(ctx, r, "look for damage", r.place.Wrecks)
	for _, w := range v.wrecks {
		v.damaged = append(v.damaged, w.Err)
	}
	return err
}

func (r *repo) list(ctx context.Context, kind format.Kind) ([]string, error) {
	return step(ctx, r, "list", func(ctx context.Context) ([]string, error) { return r.place.List(ctx, kind) })
}

// batch is how many documents are read within one deadline.
const batch = 128

// all reads every document of a kind. Those that are damaged are noted in v, and
// that one went meanwhile is no error.
func all[T any](ctx context.Context, r *repo, kind format.Kind, v *view) (map[string]*T, error) {
	ids, err := r.list(ctx, kind)
	if err != nil {
		return nil, err
	}
	return read[T](ctx, r, kind, ids, v)
}

// read is all of those documents that are named.
func read[T any](ctx context.Context, r *repo, kind format.Kind, ids []string, v *view) (map[string]*T, error) {
	var (
		found   = make(map[string]*T, len(ids))
		mu      sync.Mutex
		failed  error
		readers sync.WaitGroup
		batches = make(chan []string)
	)
	for range min(2*runtime.NumCPU(), len(ids)/batch+1) {
		readers.Go(func() {
			for some := range batches {
				read, damaged, err := readSome[T](ctx, r, kind, some)
				mu.Lock()
				for id, doc := range read {
					found[id] = doc
				}
				for id, err := range damaged {
					v.damaged = append(v.damaged, err)
					if errors.Is(err, ErrDamaged) {
						v.lost[kind] = append(v.lost[kind], id)
					}
					if errors.Is(err, format.ErrNoFile) {
						v.noFiles[kind] = append(v.noFiles[kind], id)
					}
				}
				failed = errors.Join(failed, err)
				mu.Unlock()
			}
		})
	}
	for some := range slices.Chunk(ids, batch) {
		batches <- some
	}
	close(batches)
	readers.Wait()
	return found, failed
}

func readSome[T any](ctx context.Context, r *repo, kind format.Kind, ids []string) (map[string]*T, map[string]error, error) {
	type result struct {
		read    map[string]*T
		damaged map[string]error
	}
	got, err := step(ctx, r, "read", func(ctx context.Context) (result, error) {
		some := result{read: make(map[string]*T, len(ids)), damaged: map[string]error{}}
		for _, id := range ids {
			data, err := r.place.Read(ctx, kind, id)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if errors.Is(err, format.ErrNoFile) {
				some.damaged[id] = fmt.Errorf("%s %s: %w: %w", kind, id, ErrDamaged, err)
				continue
			}
			if err != nil {
				return some, fmt.Errorf("repository %s: %w", r.id, err)
			}
			doc := new(T)
			if err := decode(data, id, doc); err != nil {
				some.damaged[id] = fmt.Errorf("%s %s: %w", kind, id, err)
				continue
			}
			some.read[id] = doc
		}
		return some, nil
	})
	return got.read, got.damaged, err
}

// readable are those whose documents are damaged, and can be put aside, in order.
func (v *view) readable(kind format.Kind) []string {
	all := slices.Compact(slices.Sorted(slices.Values(v.lost[kind])))
	return slices.DeleteFunc(all, func(id string) bool { return slices.Contains(v.noFiles[kind], id) })
}

// chain is an image's volumes in the view.
func (v *view) chain(id string) (chain, error) {
	return volumes(id, func(id string) (*volume, error) {
		if found, ok := v.volumes[id]; ok {
			return found, nil
		}
		if slices.Contains(v.lost[format.Volume], id) {
			return nil, fmt.Errorf("volume %s: %w", id, ErrDamaged)
		}
		return nil, fs.ErrNotExist
	})
}

// uses counts who needs what.
type uses struct {
	images map[string]int // of a volume: images that point to it, plans that make it
	above  map[string]int // of a volume: those that lie on it
	plans  map[string]int // of an image: plans that read it
}

// uses counts but for the plan of the image called finished, if any.
func (v *view) uses(finished string) uses {
	u := uses{map[string]int{}, map[string]int{}, map[string]int{}}
	for _, img := range v.images {
		if img.Volume != "" {
			u.images[img.Volume]++
		}
		if img.Plan == nil || img.ID == finished {
			continue
		}
		for _, id := range img.Plan.makes() {
			u.images[id]++
		}
		for _, id := range []string{img.Plan.From, img.Plan.Base} {
			if id != "" && id != img.ID {
				u.plans[id]++
			}
		}
	}
	for _, vol := range v.volumes {
		if vol.Below != "" {
			u.above[vol.Below]++
		}
	}
	return u
}

// garbage is what nobody needs: volumes that no image and no other volume
// needs, removed images on which no other lies, and what is not needed any more once those
// have gone. In the order in which it may be removed.
func (v *view) garbage(finished string) (images, volumes []string) {
	u := v.uses(finished)
	named := v.named(u, finished)
	weak := map[string][]string{} // of a volume
	goneVolume, goneImage := map[string]bool{}, map[string]bool{}
	var lookVolume func(id string)
	lookImage := func(id string) {
		img := v.images[id]
		alone := u.images[img.Volume] <= 1
		if goneImage[id] || alone && u.above[img.Volume] > 0 || u.plans[id] > 0 {
			return
		}
		goneImage[id] = true
		images = append(images, id)
		if img.Volume != "" {
			u.images[img.Volume]--
			lookVolume(img.Volume)
		}
	}
	lookVolume = func(id string) {
		vol, ok := v.volumes[id]
		if !ok || goneVolume[id] || u.above[id] > 0 || !named(id) {
			return
		}
		if u.images[id] > 0 {
			for _, img := range weak[id] {
				lookImage(img)
			}
			return
		}
		goneVolume[id] = true
		volumes = append(volumes, id)
		if vol.Below != "" {
			u.above[vol.Below]--
			lookVolume(vol.Below)
		}
	}
	for _, id := range sorted(v.images) {
		if img := v.images[id]; img.Weak && (img.Plan == nil || img.Plan.Verb == verbRemove || id == finished) && v.pins[id] == nil {
			weak[img.Volume] = append(weak[img.Volume], id)
		}
	}
	for _, volume := range sorted(weak) {
		for _, id := range weak[volume] {
			lookImage(id)
		}
	}
	for _, id := range sorted(v.volumes) {
		lookVolume(id)
	}
	return images, volumes
}

// named says of a volume whether what is known of it tells that nobody else needs it. As
// long as documents of images are put aside, a volume that no other one names may be
// theirs.
func (v *view) named(u uses, finished string) func(id string) bool {
	if len(v.aside) == 0 {
		return func(string) bool { return true }
	}
	known := map[string]bool{}
	for id := range u.images {
		known[id] = true
	}
	if img := v.images[finished]; img != nil {
		for _, id := range img.Plan.makes() {
			known[id] = true
		}
	}
	return func(id string) bool { return known[id] }
}

// strays are data that no document speaks of, and entries of plans that are not
// open. As long as something is put aside that may be what spoke of the data.
func (v *view) strays() (data []format.Data, entries []string) {
	for _, d := range v.data {
		if vol, ok := v.volumes[d.ID]; (!ok || vol.Format != d.Kind) && len(v.aside) == 0 {
			data = append(data, d)
		}
	}
	for _, id := range slices.Concat(v.operations, v.stops) {
		if img := v.images[id]; (img == nil || img.Plan == nil) && !slices.Contains(entries, id) && !slices.Contains(v.aside, id) {
			entries = append(entries, id)
		}
	}
	return data, entries
}

func sorted[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
