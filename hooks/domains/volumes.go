// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"

	"diskhook/hooks/bindings"
)

// volumes are managed ones. All domains name one by the same path.
type volumes struct {
	*Service
	plain
}

func (volumes) binds(b bindings.Binding) bool { return b.Kind == "volume" }

func (k volumes) free(d Domain, b bindings.Bound, other Facts) error {
	if other.UUID == d.UUID {
		return nil
	}
	link := k.Host.Volumes.Link(b.Binding.Value)
	for _, h := range k.holdings(other) {
		if len(h.chain) > 0 && h.chain[0].Path == link {
			return apart(d, b, b.Kept(), h.target, other, "give one of both a volume of its own, then run this again")
		}
	}
	return nil
}

func (k volumes) fits(ctx context.Context, d Domain, b bindings.Bound) error {
	id, link := b.Binding.Value, k.Host.Volumes.Link(b.Binding.Value)
	same, err := isAt(ctx, b.Disk, link)
	if err == nil && !same {
		return different(d, b, "copy it with `diskhook volume attach %s` and `qemu-img convert -n -f %s -O raw %s %s`, set the disk's source to %s with `virsh edit %s`, then run this again",
			id, b.Disk.Format, describeSource(b), link, link, d.NameArg())
	}
	return onDisk(d, b, err)
}

func (volumes) note(*Plan, bindings.Bound) string { return "" }
