// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"maps"
	"slices"
)

// backend keeps copies somewhere. It knows no receipts and decides nothing.
// A new backend is one file with one type, and one line in backends.
type backend interface {
	// home names the place; backends that share one share its report.
	home() string
	// find returns the copies in home by name; a name that is not there is
	// not in the map. It changes nothing.
	find(ctx context.Context) (map[string]Copy, error)
	// survey is find and room with one look at home.
	survey(ctx context.Context) (map[string]Copy, room, error)
	// target is where create makes the copy of d.
	target(d Disk) string
	// room is a failure.NoSpace unless copies of these sizes fit and the
	// configured reserve stays free.
	room(ctx context.Context, sizes []int64) error
	// lends says that home gives the same room to several copies: what one takes
	// does not show when it is made.
	lends() bool
	// moreRoom is the way out when it is full.
	moreRoom() string
	// announce makes durable what has to be there before create or clone makes
	// the copy of d; withdraw takes it away if there is no copy.
	announce(d Disk) error
	withdraw(d Disk)
	// create makes the copy of d, marked updating in the same step, with at
	// least size bytes, and returns it with its node present.
	create(ctx context.Context, d Disk, size int64) (Copy, error)
	// readsZero says whether what create makes reads as zeros (design 9.8); of
	// what it made Copy.Zeroes does.
	readsZero(ctx context.Context) (bool, error)
	// finish takes the updating mark away in one step, after which the copy
	// is complete and ours.
	finish(ctx context.Context, d Disk, c Copy, machine string) error
	// claim marks a complete copy as ours, for adoption.
	claim(ctx context.Context, d Disk, c Copy, machine string) error
	// activate makes the nodes of all copies appear, with one command.
	activate(ctx context.Context, copies []Copy) error
	deactivate(ctx context.Context, copies []Copy) error
	// spoil marks a ready copy, or template, updating, durably, before its data goes,
	// and returns it as it is then. Of an updating one it changes nothing.
	spoil(ctx context.Context, c Copy) (Copy, error)
	// remove deletes a copy. It refuses one that is or may be open.
	remove(ctx context.Context, c Copy) error
	// extend grows the copy to at least size bytes and returns it.
	extend(ctx context.Context, c Copy, size int64) (Copy, error)
	// explain lists what an action would do, for dry runs: exact commands
	// where commands are run. clone, if not nil, is what the copy that it makes
	// would be a clone of.
	explain(ctx context.Context, a Action, d Disk, c Copy, size int64, clone *clonePlan) []string

	templates
}

// room is backend.room, as of one look.
type room func(sizes []int64) error

// templates is what a backend knows of templates and their clones, see
// template.go. They are found, activated and removed as copies are.
type templates interface {
	// templateHome names what shares templates.
	templateHome() string
	// keeps says whether a template that was found in home is this backend's: two
	// may share a home.
	keeps(template Copy) bool
	// cloneless is why a copy cannot be a clone here; "" is that it can.
	cloneless(ctx context.Context) string
	// clonesHold says that a template with clones is not to go. One on which
	// overlays lie never does.
	clonesHold() bool
	// roomWithout is room if these templates, which have no clones, were gone. It
	// may be too hopeful where it cannot be told what they hold.
	roomWithout(ctx context.Context, gone []Copy, sizes []int64) error
	// createTemplate makes an empty template with at least size bytes, marked
	// updating and tagged in the same step, and returns it with its node present.
	createTemplate(ctx context.Context, name string, size int64, tags []string) (Copy, error)
	// reopenTemplate lets one that is updating be written to again.
	reopenTemplate(ctx context.Context, c Copy) error
	// finishTemplate lets nobody write to it, then takes the updating mark away
	// in one step.
	finishTemplate(ctx context.Context, c Copy) error
	// clone makes the copy of d as create does, with the content of a ready
	// template; what lies beyond that is as in a new one. It may have the size
	// of the template yet.
	clone(ctx context.Context, template Copy, d Disk, size int64) error
	// cloned gives what clone made its size and returns it with its node
	// present. The template is not needed any more.
	cloned(ctx context.Context, template Copy, d Disk, size int64) (Copy, error)
	// retag changes the tags of a template.
	retag(ctx context.Context, c Copy, add, del []string) error
}

// backends is the table of backends.
func backends() map[string]func(*Service) backend {
	return map[string]func(*Service) backend{
		"lvm":     func(s *Service) backend { return newVolumes(s, "") },
		"lvmthin": func(s *Service) backend { return newVolumes(s, s.Config.Local.Pool) },
		"dir":     func(s *Service) backend { return newDirectory(s) },
		"thin":    func(s *Service) backend { return newThin(s) },
	}
}

// Backends returns the names of all backends, sorted.
func Backends() []string { return slices.Sorted(maps.Keys(backends())) }

func (s *Service) backend(d Disk) backend {
	if d.Home != "" {
		s = s.at(d.Home)
	}
	return backends()[d.Backend](s)
}
