// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	thinclaim "diskhook/storage/thin/claim"
	"diskhook/storage/thin/member"
)

// Pools is this host's side of thin clusters.
type Pools interface {
	// Cluster is the name of the cluster that is meant by a name; "" is the host's own.
	Cluster(name string) (string, error)
	// Pool is this host in a cluster, which a member.Member is. A master that does not
	// answer is given up early enough for ctx's deadline.
	Pool(ctx context.Context, cluster string) (Pool, error)
	// Path is where a volume is while it is attached to this host.
	Path(cluster, volume string) string
}

// Pool is a host's side of a thin cluster; see member.Member.
type Pool interface {
	Copies(ctx context.Context) (member.Copies, error)
	MakeCopy(ctx context.Context, n member.NewCopy) error
	Relabel(ctx context.Context, name string, label thinclaim.Label) error
	HoldCopies(ctx context.Context, copies map[string]uuid.UUID) error
	RemoveCopy(ctx context.Context, name string, id uuid.UUID) error
	Resize(ctx context.Context, name string, size uint64) error
}

// thin is the backend thin: volumes of a thin cluster, in the pool of this host.
//
// What tags are to LVM the label is here, which this host has of the volume: it is
// there, with UPDATING, before the master is asked for the volume, and goes after it.
// A label without a volume, or with a part of one, is a copy that is updating, so
// whatever a crash leaves is removed like one. A volume of this host that is named
// as a copy is and has no label counts as complete, and without a receipt is nobody's.
//
// A copy stays attached to this host from when it is made until it is removed: no
// start of a domain needs the master, and nobody else gets the volume.
type thin struct {
	templateless
	pools   Pools
	cluster string // "" is not known: err says why
	err     error
	sparse  bool
	reserve int // percent
	patient time.Duration
}

const (
	thinBackend = "thin"
	// thinHome begins the name of a home that is a cluster: no volume group and no
	// directory has a name like that.
	thinHome = "thin:"
	// maxThinTarget is how long a target may be for the name of its copy, or that of
	// the raw one that an overlay becomes, to be one of a volume.
	maxThinTarget = 63 - len(copyPrefix) - len(blankUUID) - 1 - len(rawSuffixOfName)
)

func newThin(s *Service) backend {
	b := &thin{
		pools: s.Thin, cluster: s.Config.Thin.Cluster,
		sparse: s.Config.Local.Sparse, reserve: s.Config.Local.PoolReserve, patient: time.Duration(s.Config.Local.Deadline),
	}
	switch {
	case b.pools == nil:
		b.err = failure.New(failure.Precondition, "there are no thin clusters here")
	case b.cluster == "":
		b.cluster, b.err = b.pools.Cluster("")
	}
	return b
}

func (b *thin) home() string { return thinHome + b.cluster }

func (b *thin) target(d Disk) string { return b.node(d.CopyName()) }

func (b *thin) node(name string) string {
	if b.pools == nil {
		return ""
	}
	return b.pools.Path(b.cluster, name)
}

// pool is this host in the cluster.
func (b *thin) pool(ctx context.Context) (Pool, error) {
	if b.err != nil {
		return nil, b.err
	}
	return b.pools.Pool(ctx, b.cluster)
}

// look gives a disk up that does not answer. That this host has no part in the
// cluster now is a failure.Precondition.
func (b *thin) look(ctx context.Context) (member.Copies, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	all, err := command.Abandon(ctx, func() (member.Copies, error) {
		p, err := b.pool(ctx)
		if err != nil {
			return member.Copies{}, err
		}
		return p.Copies(ctx)
	})
	switch {
	case errors.Is(err, command.ErrNoAnswer):
		err = failure.Hint(err, "look after the disk of the cluster, until `diskhook thin status` answers")
	case errors.Is(err, failure.NotFound), errors.Is(err, failure.Conflict), errors.Is(err, failure.Usage):
		err = failure.Wrap(failure.Precondition, err)
	}
	return all, err
}

func (b *thin) find(ctx context.Context) (map[string]Copy, error) {
	copies, _, err := b.survey(ctx)
	return copies, err
}

func (b *thin) survey(ctx context.Context) (map[string]Copy, room, error) {
	all, err := b.look(ctx)
	if err != nil {
		return nil, nil, err
	}
	copies := map[string]Copy{}
	for _, v := range all.All {
		if c, is := b.describe(all, v); is {
			copies[c.Name] = c
		}
	}
	return copies, func(sizes []int64) error { return b.roomIn(all, sizes) }, nil
}

// describe says what a volume is as a copy. One that has neither a label nor the name
// of a copy is none.
func (b *thin) describe(all member.Copies, v member.Copy) (c Copy, is bool) {
	c = Copy{
		State: Ready, UUID: v.UUID.String(), Name: v.Name, Format: imagecheck.Raw, Home: b.home(), HomeID: all.Cluster.String(),
		Path: b.node(v.Name), Size: int64(v.Size), Open: &v.InUse, Active: v.Active, Zeroes: true, Writable: true,
	}
	switch {
	case v.Damaged != nil:
		c.Sick = failure.OneLine(v.Damaged.Error())
	case v.Label != nil:
		c.Tags = v.Label.Tags
	default:
		domain := ownerOf(c)
		if domain == "" {
			return c, false
		}
		c.Tags = []string{tagVM + domain}
	}
	if c.has(tagUpdating) {
		c.State = Updating
	}
	if c.has(tagOverlay) {
		c.Format = imagecheck.QCOW2
	}
	if v.Host != "" && !v.Here {
		c.Open, c.Sick = nil, "it is at host "+v.Host
	}
	return c, v.Size > 0 || c.State == Updating
}

func (b *thin) room(ctx context.Context, sizes []int64) error {
	all, err := b.look(ctx)
	if err != nil {
		return err
	}
	return b.roomIn(all, sizes)
}

// roomIn wants room for all of a copy: a pool that runs full holds back the guests of
// this host until the cluster has more. What other unfinished copies may still take
// is not free; of those that begin at the same time member.MakeCopy knows. [local] sparse
// has it be enough that there is some.
func (b *thin) roomIn(all member.Copies, sizes []int64) error {
	if all.Stopped != nil {
		return all.Stopped
	}
	where, free := "thin cluster "+b.cluster, int64(all.Slack+all.Free)-b.reserved(all)
	if b.sparse {
		return fits(where, free, []int64{int64(all.BlockSize)}, b.moreRoom())
	}
	for _, v := range all.All {
		if v.Label != nil && slices.Contains(v.Label.Tags, tagUpdating) {
			free -= int64(v.Size - min(v.Size, v.Taken))
		}
	}
	return fits(where, free, sizes, b.moreRoom())
}

// reserved is how many bytes of the cluster [local] pool_reserve keeps free.
func (b *thin) reserved(all member.Copies) int64 { return int64(all.Total) / 100 * int64(b.reserve) }

// roomWithout is room: there are no templates.
func (b *thin) roomWithout(ctx context.Context, _ []Copy, sizes []int64) error {
	return b.room(ctx, sizes)
}

// lends holds: a volume takes of the pool what is written to it.
func (b *thin) lends() bool { return true }

func (b *thin) moreRoom() string {
	return fmt.Sprintf("run `diskhook thin gc`, extend the LUN and run `diskhook thin grow`, or lower [local] pool_reserve (%d %% now)", b.reserve)
}

// A volume has its label before it is there; see member.MakeCopy.
func (b *thin) announce(Disk) error { return nil }
func (b *thin) withdraw(Disk)       {}

func (b *thin) create(ctx context.Context, d Disk, size int64) (Copy, error) {
	all, err := b.look(ctx)
	if err != nil {
		return Copy{}, err
	}
	p, err := b.pool(ctx)
	if err != nil {
		return Copy{}, err
	}
	err = p.MakeCopy(ctx, member.NewCopy{
		Name: d.CopyName(), Size: uint64(sectors(size)), Label: thinclaim.Label{Volume: uuid.New(), Tags: creationTags(d)},
		Granted: !b.sparse, Filling: tagUpdating, Reserve: uint64(b.reserved(all)),
	})
	if err != nil {
		return Copy{}, err
	}
	c, err := b.again(ctx, d.CopyName())
	if err != nil {
		return c, err
	}
	return c, c.awaitNode(ctx)
}

// again looks at a copy that is there.
func (b *thin) again(ctx context.Context, name string) (Copy, error) {
	copies, err := b.find(ctx)
	if err != nil {
		return Copy{}, err
	}
	c, ok := copies[name]
	if !ok {
		return c, failure.New(failure.Conflict, "volume %s/%s: vanished after it was created", b.cluster, name)
	}
	return c, nil
}

// readsZero holds: no pool of a cluster hands out a block before it has zeroed it.
func (b *thin) readsZero(context.Context) (bool, error) { return true, nil }

func (b *thin) finish(ctx context.Context, d Disk, c Copy, machine string) error {
	return b.claim(ctx, d, c, machine)
}

// claim writes the label as that of a complete copy. One that got lost is made again.
func (b *thin) claim(ctx context.Context, d Disk, c Copy, machine string) error {
	tags := slices.DeleteFunc(slices.Clone(c.Tags), func(t string) bool { return t == tagUpdating })
	for _, t := range slices.Concat(identityTags(d), ourTags(d, machine)) {
		if !slices.Contains(tags, t) {
			tags = append(tags, t)
		}
	}
	return b.relabel(ctx, c, tags)
}

func (b *thin) relabel(ctx context.Context, c Copy, tags []string) error {
	p, err := b.pool(ctx)
	if err != nil {
		return err
	}
	id, err := uuid.Parse(c.UUID)
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	return p.Relabel(ctx, c.Name, thinclaim.Label{Volume: id, Tags: tags})
}

// activate has nothing to do where the devices are there, as they are while the pool
// runs.
func (b *thin) activate(ctx context.Context, copies []Copy) error {
	hold := map[string]uuid.UUID{}
	for _, c := range copies {
		id, err := uuid.Parse(c.UUID)
		if err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		if !c.Active {
			hold[c.Name] = id
		}
	}
	if len(hold) == 0 {
		return nil
	}
	if b.patient > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, b.patient)
		defer cancel()
	}
	p, err := b.pool(ctx)
	if err != nil {
		return err
	}
	return p.HoldCopies(ctx, hold)
}

// deactivate leaves them attached. What only a fulfil makes is the disk's path.
func (b *thin) deactivate(context.Context, []Copy) error { return nil }

// spoil adds the mark to the label. A volume that is no copy by anything but its name
// has none.
func (b *thin) spoil(ctx context.Context, c Copy) (Copy, error) {
	if c.State != Ready || len(c.Tags) == 0 {
		return c, nil
	}
	c.State, c.Tags = Updating, append([]string{tagUpdating}, c.Tags...)
	return c, b.relabel(ctx, c, c.Tags)
}

// remove marks a complete copy first, so that one of which a part is gone is never
// taken for one.
func (b *thin) remove(ctx context.Context, c Copy) error {
	if !c.closed() {
		return inUse(c)
	}
	c, err := b.spoil(ctx, c)
	if err != nil {
		return err
	}
	id, err := uuid.Parse(c.UUID)
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	p, err := b.pool(ctx)
	if err != nil {
		return err
	}
	return p.RemoveCopy(ctx, c.Name, id)
}

func (b *thin) extend(ctx context.Context, c Copy, size int64) (Copy, error) {
	p, err := b.pool(ctx)
	if err == nil && size > c.Size {
		err = p.Resize(ctx, c.Name, uint64(sectors(size)))
	}
	if err != nil {
		return c, err
	}
	now, err := b.again(ctx, c.Name)
	if err == nil && now.UUID != c.UUID {
		err = failure.New(failure.Conflict, "%s: vanished", c)
	}
	return now, err
}

// explain says what the master is asked for: there is no command for it.
func (b *thin) explain(_ context.Context, a Action, d Disk, c Copy, size int64, _ *clonePlan) []string {
	ask := func(format string, args ...any) string {
		return "# master of " + b.cluster + ": " + fmt.Sprintf(format, args...)
	}
	create := []string{ask("create volume %s of %d bytes", d.CopyName(), sectors(size)), ask("attach volume %s to this host as %s", d.CopyName(), b.target(d))}
	switch a {
	case Create, Retire:
		return create
	case Replace:
		return append([]string{ask("delete volume %s", c.Name)}, create...)
	case Use:
		if !c.Active {
			return []string{ask("attach volume %s to this host as %s", c.Name, c.Path)}
		}
	}
	return nil
}

// mayZero refuses: see zerosTake.
func (b *thin) mayZero(_ context.Context, c Copy) error { return zerosTake(c) }
