// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"log/slog"

	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector"
	"diskhook/storage/progress"
)

// Host is what bindings work with on this machine. It may be used from any
// goroutine.
type Host struct {
	Layout host.Layout
	Config host.Config
	Log    *slog.Logger
	Local  Local
	Quorum Quorum
	// Volumes attaches managed volumes; nil: there are none here.
	Volumes Volumes
	// Images opens the storage repositories; nil: there are none here. It is a
	// function, since only a domain with an image needs what that takes.
	Images func() (Images, error)
	// Thin attaches volumes of thin clusters; nil: there are none here.
	Thin Thin
	// ConnectorInfo is what the storage side of managed volumes needs to know of
	// this host. Root looks itself; the user vdsm goes through diskhook-helper.
	ConnectorInfo func(context.Context) (connector.Properties, error)
	// Reader reads the sources of oVirt's disks; nil is ourselves. See
	// localdisk.OVirtIdentities.
	Reader *command.Credential
	// Libvirt and QEMU are their versions in libvirt's numbers (1000000·major +
	// 1000·minor + release); 0: not known, and nothing is written that older
	// ones lack.
	Libvirt, QEMU uint32
	// Notify, if set, is told how a copy goes on while a start waits for it.
	Notify func(localdisk.Disk, progress.Status)
}

// Discover finds the images below top, the source of disk or one of its
// layers, by their headers.
func (h *Host) Discover(ctx context.Context, disk localdisk.Disk, top imagecheck.Layer) ([]imagecheck.Layer, error) {
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	checker := imagecheck.Checker{Allowed: h.Config.Paths.Allowed}
	if disk.OVirt() {
		checker.User = h.Reader
	}
	return checker.Discover(ctx, top)
}

// Volumes is what bindings need of managed volumes. Root uses managed.Service
// itself; the user vdsm goes through diskhook-helper.
type Volumes interface {
	// Link is the path that domains name, attached or not.
	Link(id string) string
	Node(id string) (managed.Node, error)
	ExplainAttach(context.Context, managed.Request) ([]string, error)
	Attach(context.Context, managed.Request) (managed.Attached, error)
	// Own gives an attached volume to a user and a group, for as long as it is
	// attached.
	Own(ctx context.Context, id string, uid, gid int) error
	Release(ctx context.Context, id, domain string) error
	// ReleaseRest releases all that a domain has.
	ReleaseRest(ctx context.Context, domain string) error
}

// Local is what bindings need of local copies. Root uses localdisk itself
// (Direct); the user vdsm goes through diskhook-helper.
type Local interface {
	Observe(context.Context, []localdisk.Disk) ([]localdisk.Observed, error)
	Commands(context.Context, localdisk.Observed, localdisk.Decision) []string
	Fulfil(context.Context, []localdisk.Disk, localdisk.Waiting) ([]localdisk.Placement, error)
	Release(ctx context.Context, domain string, disks []localdisk.Disk, reason string) error
	// ReleaseRest releases what a domain that has gone has left: copies of
	// disks that it had no longer when it ended. It gives none up.
	ReleaseRest(ctx context.Context, domain string) error
	// Abandon undoes the first Fulfil of copies of oVirt's disks, of which no
	// guest has used any.
	Abandon(ctx context.Context, domain string) error
	SetOwner(ctx context.Context, p localdisk.Placement, uid, gid int) error
	// MarkSaved records that the domain has saved memory, ClearSaved that it
	// has none any more.
	MarkSaved(ctx context.Context, domain string) error
	ClearSaved(ctx context.Context, domain string) error
}

// Direct is Local for a caller that may do everything itself.
func Direct(s *localdisk.Service) Local { return direct{s} }

type direct struct{ *localdisk.Service }

func (d direct) MarkSaved(_ context.Context, domain string) error {
	return localdisk.MarkSaved(d.Layout, domain)
}

func (d direct) ClearSaved(_ context.Context, domain string) error {
	return localdisk.ClearSaved(d.Layout, domain)
}
