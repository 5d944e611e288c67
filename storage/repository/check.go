// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/repository/format"
)

// FixType is what a fix is for.
type FixType string

// The types of fixes.
const (
	Clean    FixType = "clean"    // frees space
	Optimize FixType = "optimize" // makes a degraded image optimized
	Merge    FixType = "merge"    // makes one volume of two; afterwards more may be cleaned
	Mend     FixType = "mend"     // goes on with what a broken image waits for
)

// Fix is something that can be done about a repository. Callers look at it,
// choose, and hand it to FixStorageRepository as it is.
type Fix struct {
	ID      string   `json:"id"` // the same for the same fix
	Type    FixType  `json:"type"`
	Images  []string `json:"images,omitempty"`
	Summary string   `json:"summary"`
	// Bytes is an estimate: what is freed by a clean, what the others copy; -1
	// is unknown.
	Bytes int64 `json:"bytes"`
	// ByName fixes give something up. They are done only if Options.Confirm says what:
	// the first of Images.
	ByName bool `json:"by_name,omitempty"`
	// Resumes says that it goes on with work that was begun before, on the one of Images.
	Resumes bool `json:"resumes,omitempty"`
	// Data means nothing to callers.
	Data string `json:"data"`
}

// Report is what a check found.
type Report struct {
	Fixes []Fix `json:"fixes"`
	// Problems are what no fix helps against.
	Problems []string `json:"problems,omitempty"`
	Images   int      `json:"images"`
	Volumes  int      `json:"volumes"`
	// Skipped volumes are in use, so that a deep check left them out.
	Skipped int `json:"skipped,omitempty"`
}

// CheckStorageRepository looks for what can be fixed. It takes no lock and changes
// nothing, so what is under way may look like something to fix; FixStorageRepository
// finds out. Sorted, and the same for the same repository.
func (s *Service) CheckStorageRepository(ctx context.Context, repoID string) (Report, error) {
	return s.check(ctx, repoID, false)
}

func (s *Service) check(ctx context.Context, repoID string, deep bool) (Report, error) {
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return Report{}, err
	}
	defer r.close()
	v, err := r.scan(ctx)
	if err != nil {
		return Report{}, err
	}
	c := &checking{Service: s, repo: r, view: v, bad: map[string]bool{}, report: Report{Fixes: []Fix{}, Volumes: len(v.volumes)}}
	report, err := c.run(ctx)
	if err == nil && deep {
		defer s.letGo(ctx, r)
		err = c.deep(ctx)
		report = c.report
	}
	return report, err
}

type checking struct {
	*Service
	repo   *repo
	view   *view
	bad    map[string]bool // volumes of which a problem was told
	report Report
}

func (c *checking) run(ctx context.Context) (Report, error) {
	for _, err := range c.view.damaged {
		c.report.Problems = append(c.report.Problems, failure.Line(err))
	}
	if len(c.view.damaged) > 0 {
		c.report.Problems = append(c.report.Problems, "nothing is cleaned or merged while documents cannot be read: what they need is not known")
	}
	slices.Sort(c.report.Problems)
	for _, id := range sorted(c.view.images) {
		if err := c.image(ctx, c.view.images[id]); err != nil {
			return c.report, err
		}
	}
	if err := c.missing(ctx); err != nil {
		return c.report, err
	}
	c.given()
	if err := c.undescribed(ctx); err != nil {
		return c.report, err
	}
	if len(c.view.damaged) == 0 {
		if err := errors.Join(c.cleans(ctx), c.merges(ctx)); err != nil {
			return c.report, err
		}
	}
	return c.report, ctx.Err()
}

// image finds what is to be done with one image.
func (c *checking) image(ctx context.Context, img *image) error {
	if !img.Weak {
		c.report.Images++
	}
	if img.Plan != nil {
		return c.open(ctx, img)
	}
	if img.Weak {
		return nil
	}
	volumes, err := c.view.chain(img.Volume)
	switch stateOf(img, volumes, err) {
	case Broken:
		what := "if its data does not come back, remove it"
		if errors.Is(err, ErrDamaged) {
			what = "a fix describes that anew"
		}
		c.report.Problems = append(c.report.Problems, fmt.Sprintf("image %s: %s; %s", img.ID, failure.Line(err), what))
	case Degraded:
		fix := Fix{Type: Optimize, Images: []string{img.ID}, Summary: fmt.Sprintf("copy it whole: it consists of %d volumes", len(volumes))}
		for _, v := range volumes {
			fix.Bytes += c.repo.allocated(ctx, v.ID, v.Format)
		}
		c.add(fix, order{Kind: orderOptimize, Images: map[string]int64{img.ID: img.Gen}})
	}
	return nil
}

// open finds plans that nobody walks.
func (c *checking) open(ctx context.Context, img *image) error {
	held, err := step(ctx, c.repo, "look at a lock", func(ctx context.Context) (bool, error) {
		return c.repo.place.Held(ctx, workLock(img.ID))
	})
	if err != nil || held {
		return err
	}
	types := map[string]FixType{verbRemove: Clean, verbOptimize: Optimize, verbMerge: Merge, verbRepair: Clean}
	fix := Fix{Type: Mend, Images: []string{img.ID}, Summary: "go on with " + img.Plan.Verb, Bytes: -1, Resumes: true}
	if t, ok := types[img.Plan.Verb]; ok {
		fix.Type = t
	}
	// No generation: the plan is the same when work on it failed after a stage that changed the image.
	c.add(fix, order{Kind: orderGoOn, Images: map[string]int64{img.ID: 0}, Plan: img.Plan.Nonce})
	return nil
}

// perClean bounds how much one fix cleans, so that none works long under the
// repository's lock.
const perClean = 256

// cleans finds what nobody needs.
func (c *checking) cleans(ctx context.Context) error {
	images, volumes := c.view.garbage("")
	images = slices.DeleteFunc(images, func(id string) bool { return c.view.images[id].Plan != nil }) // it goes on by itself
	if len(images)+len(volumes) <= perClean {
		c.clean(ctx, images, volumes)
	} else { // images first: a volume is not deleted before them
		for some := range slices.Chunk(images, perClean) {
			c.clean(ctx, some, nil)
		}
		for some := range slices.Chunk(volumes, perClean) {
			c.clean(ctx, nil, some)
		}
	}
	data, entries := c.view.strays()
	for some := range slices.Chunk(data, perClean) {
		fix := Fix{Type: Clean, Summary: fmt.Sprintf("delete data of %d volumes that were given up", len(some))}
		for _, d := range some {
			fix.Bytes += c.repo.allocated(ctx, d.ID, d.Kind)
		}
		c.add(fix, order{Kind: orderStrays, Data: some})
	}
	for some := range slices.Chunk(entries, perClean) {
		c.add(Fix{Type: Clean, Summary: fmt.Sprintf("forget %d plans that are done", len(some))}, order{Kind: orderStrays, Entries: some})
	}
	return ctx.Err()
}

func (c *checking) clean(ctx context.Context, images, volumes []string) {
	if len(images)+len(volumes) == 0 {
		return
	}
	fix := Fix{Type: Clean, Images: images, Summary: fmt.Sprintf("forget %d removed images, delete %d volumes that no other image needs", len(images), len(volumes))}
	about := order{Kind: orderClean, Images: map[string]int64{}, Volumes: map[string]int64{}}
	for _, id := range images {
		about.Images[id] = c.view.images[id].Gen
	}
	for _, id := range volumes {
		fix.Bytes += c.repo.allocated(ctx, id, c.view.volumes[id].Format)
		about.Volumes[id] = c.view.volumes[id].Gen
	}
	c.add(fix, about)
}

// merges finds removed snapshots on which one single image lies.
func (c *checking) merges(ctx context.Context) error {
	for _, m := range c.view.mergeable() {
		fix := Fix{
			Type: Merge, Images: []string{m.into.ID, m.removed.ID},
			Summary: fmt.Sprintf("make one volume of what is left of removed image %s and of %s, which lies on it", m.removed.ID, m.into.ID),
		}
		fix.Bytes, _ = c.repo.mergeCost(ctx, c.view, m)
		c.add(fix, order{Kind: orderMerge, Images: map[string]int64{m.into.ID: m.into.Gen, m.removed.ID: m.removed.Gen}, Into: m.into.ID})
	}
	return ctx.Err()
}

// mergeCost is about how much is copied: what the lower volume has goes up, or what
// the upper one has goes down, if no other volume lies on that.
func (r *repo) mergeCost(ctx context.Context, v *view, m merging) (bytes int64, sink bool) {
	upper, lower := v.volumes[m.into.Volume], v.volumes[m.removed.Volume]
	up, down := r.allocated(ctx, lower.ID, lower.Format), r.allocated(ctx, upper.ID, upper.Format)
	if m.leaf && (down < up || r.place.Capabilities().Stale) { // all have all their room there: who is above has less as a rule
		return down, true
	}
	return up, false
}

// merging is a removed image that can be merged into the one that lies on it.
type merging struct {
	removed, into *image
	leaf          bool // nothing lies on into's volume
}

// mergeable finds them, in order.
func (v *view) mergeable() []merging {
	u := v.uses("")
	owner := map[string]*image{} // of a volume that is one image's alone
	for _, img := range v.images {
		if img.Volume != "" && u.images[img.Volume] == 1 && img.Plan == nil {
			owner[img.Volume] = img
		}
	}
	above := map[string]*volume{} // of a volume with one above it
	for _, vol := range v.volumes {
		if vol.Below != "" && u.above[vol.Below] == 1 && vol.Complete {
			above[vol.Below] = vol
		}
	}
	var all []merging
	for _, id := range sorted(v.images) {
		removed := v.images[id]
		if !removed.Weak || owner[removed.Volume] != removed || u.plans[id] > 0 {
			continue
		}
		upper := above[removed.Volume]
		if upper == nil || owner[upper.ID] == nil || owner[upper.ID].Weak || v.pins[id] != nil {
			continue
		}
		all = append(all, merging{removed, owner[upper.ID], u.above[upper.ID] == 0})
	}
	return all
}

// allocated is an estimate's part; what cannot be told counts for nothing.
func (r *repo) allocated(ctx context.Context, id, kind string) int64 {
	n, err := step(ctx, r, "look at a volume", func(ctx context.Context) (int64, error) { return r.place.Allocated(ctx, id, kind) })
	if err != nil {
		return 0
	}
	return n
}

func (c *checking) add(f Fix, about order) {
	about.V, about.Nonce = documentVersion, c.repo.about.Nonce
	f.Data, f.ID = about.seal()
	c.report.Fixes = append(c.report.Fixes, f)
}

// order is the opaque data of a fix: what to do, and what was seen.
type order struct {
	V       int              `json:"v"`
	Nonce   string           `json:"nonce"` // the repository's
	Kind    string           `json:"kind"`
	Images  map[string]int64 `json:"images,omitempty"` // generations
	Volumes map[string]int64 `json:"volumes,omitempty"`
	Plan    string           `json:"plan,omitempty"`
	Into    string           `json:"into,omitempty"`
	Data    []format.Data    `json:"data,omitempty"`
	Entries []string         `json:"entries,omitempty"`
}

// The kinds of orders.
const (
	orderGoOn     = "go-on"
	orderOptimize = "optimize"
	orderMerge    = "merge"
	orderClean    = "clean"
	orderStrays   = "strays"
	orderLeaks    = "leaks"
	orderAside    = "aside"
	orderForget   = "forget"
	orderWreck    = "wreck"
	orderUnused   = "unused"
	orderDescribe = "describe"
)
