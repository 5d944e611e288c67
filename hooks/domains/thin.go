// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"

	"diskhook/hooks/bindings"
)

// thins are volumes of thin clusters. Which domains of other hosts are bound to one
// nobody knows; only one of them can have it attached.
type thins struct {
	*Service
	plain
}

func (thins) binds(b bindings.Binding) bool { return b.Kind == "thin" }

func (thins) free(d Domain, b bindings.Bound, other Facts) error {
	target := keptFor(d, b, other)
	if target == "" {
		return nil
	}
	return apart(d, b, b.Kept(), target, other, "give one of both a volume of its own, as `diskhook thin clone --cluster %s %s NEW` makes it", b.Binding.Option("cluster", ""), b.Binding.Value)
}

func (k thins) fits(ctx context.Context, d Domain, b bindings.Bound) error {
	path, err := k.Host.ThinAt(b)
	if err != nil {
		return onDisk(d, b, err)
	}
	same, err := isAt(ctx, b.Disk, path)
	if err == nil && !same {
		return different(d, b, "copy it with `diskhook thin attach --cluster %[1]s %[2]s`, `qemu-img convert -n -f %[3]s -O raw %[4]s %[5]s` and `diskhook thin detach --cluster %[1]s %[2]s`, or go without it; then set the disk's source to %[6]s with `virsh edit %[7]s`, and run this again",
			b.Binding.Option("cluster", ""), b.Binding.Value, b.Disk.Format, describeSource(b), path, k.Host.ThinLink(d.Domain, b.Disk.Target), d.NameArg())
	}
	if err == nil {
		_, err = withPatience(ctx, func() (struct{}, error) { return struct{}{}, k.Host.ThinThere(ctx, b) })
	}
	return onDisk(d, b, err)
}

func (thins) note(*Plan, bindings.Bound) string { return "" }
