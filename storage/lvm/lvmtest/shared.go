// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"diskhook/storage/command"
	"diskhook/storage/imagelock"
)

// Shared is a volume group that several hosts have, as one of them sees it: a
// command.Runner in place of lvm(8), without any device. A volume is a file, and
// its node another link to that in the host's Dev. Only one command of any process runs at a
// time. A volume is open while somebody has QEMU's locks on it.
type Shared struct {
	State string // directory of the group; each has its own
	Dev   string // the host's /dev
	Host  string
	// Refuse, if any, is asked before each command, with its arguments.
	Refuse func(args []string) error
}

// CreateShared makes an empty group. lockType is "sanlock", "dlm" or "".
func CreateShared(dir, name, lockType string, size, extent int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	g := Group{Name: name, UUID: lvmUUID(), Size: size, Extent: extent, LockType: lockType, Volumes: map[string]*Volume{}}
	return g.save(dir)
}

// Run implements command.Runner.
func (s Shared) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	var result command.Result
	err := ctx.Err()
	if err == nil && s.Refuse != nil {
		err = s.Refuse(cmd.Args)
	}
	if err == nil {
		result.Stdout, err = s.run(cmd)
	}
	if err != nil {
		return result, &command.Error{Argv: cmd.Argv(), Code: 5, Stderr: err.Error()}
	}
	return result, nil
}

func (s Shared) run(cmd command.Cmd) ([]byte, error) {
	if cmd.Name != "lvm" {
		return nil, fmt.Errorf("%s: not here", cmd.Name)
	}
	lock, err := os.OpenFile(filepath.Join(s.State, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New(`  Volume group "gone" not found`)
	}
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	c, err := parse(cmd.Args)
	if err != nil {
		return nil, err
	}
	if err := c.log(s.State); err != nil {
		return nil, err
	}
	g, err := Load(s.State)
	if err != nil || c.vg() != g.Name {
		return nil, fmt.Errorf("  Volume group %q not found", c.vg())
	}
	if c.verb == "fullreport" {
		return g.rendered(g.Extent, func(v *Volume) bool { _, on := v.On[s.Host]; return on })
	}
	do, known := sharedVerbs[c.verb]
	if !known {
		return nil, fmt.Errorf("  No such command %q", c.verb)
	}
	if err := do(s, g, c); err != nil {
		return nil, err
	}
	return nil, g.save(s.State)
}

var sharedVerbs = map[string]func(Shared, *Group, call) error{
	"lvcreate": Shared.create, "lvchange": Shared.change, "lvremove": Shared.remove, "lvextend": Shared.extend,
}

func (s Shared) image(name string) string { return filepath.Join(s.State, name+".img") }

func (g *Group) whole(bytes int64) int64 { return (bytes + g.Extent - 1) / g.Extent * g.Extent }

// create makes a linear volume. What it holds is what an earlier owner left, but for
// the first 4 KiB if it is activated.
func (s Shared) create(g *Group, c call) error {
	name := c.value("-n")
	v := &Volume{UUID: lvmUUID(), Tags: c.options["--addtag"], Size: g.whole(size(c.value("-L"))), Skip: c.value("-k") == "y"}
	switch {
	case g.Volumes[name] != nil:
		return fmt.Errorf("  Logical Volume %q already exists in volume group %q", name, g.Name)
	case g.used()+v.Size > g.Size:
		return fmt.Errorf("  Volume group %q has insufficient free space (%d extents): %d required", g.Name, (g.Size-g.used())/g.Extent, v.Size/g.Extent)
	}
	g.Volumes[name] = v
	if err := stale(s.image(name), 0, v.Size); err != nil || c.value("-a") != "y" {
		return err
	}
	f, err := os.OpenFile(s.image(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, 4096), 0)
	return errors.Join(err, f.Close(), s.activate(g, name, true))
}

// stale lays what an earlier owner left into a file.
func stale(path string, from, to int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	const most = 1 << 20 // the rest would only take time
	left := make([]byte, min(to-from, most))
	for i := range left {
		left[i] = 0xAA
	}
	_, err = f.WriteAt(left, from)
	return errors.Join(err, f.Truncate(to), f.Close())
}

func (s Shared) activate(g *Group, name string, exclusive bool) error {
	v := g.Volumes[name]
	for host, alone := range v.On {
		if host != s.Host && g.LockType != "" && (alone || exclusive) {
			return fmt.Errorf("  LV locked by other host: %s/%s", g.Name, name)
		}
	}
	if alone, on := v.On[s.Host]; on && alone != exclusive && g.LockType != "" {
		return fmt.Errorf("  LV is already locked with incompatible mode: %s/%s", g.Name, name)
	}
	if v.On == nil {
		v.On = map[string]bool{}
	}
	v.On[s.Host] = exclusive
	node := filepath.Join(s.Dev, g.Name, name)
	if err := os.MkdirAll(filepath.Dir(node), 0o755); err != nil {
		return err
	}
	if err := os.Link(s.image(name), node); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// idle fails while somebody has a volume open.
func (s Shared) idle(g *Group, name string) error {
	f, err := os.OpenFile(s.image(name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := imagelock.Write(f); err != nil && !errors.Is(err, imagelock.ErrNoLocks) {
		return fmt.Errorf("  Logical volume %s/%s in use", g.Name, name)
	}
	return nil
}

func (s Shared) change(g *Group, c call) error {
	for _, name := range c.names() {
		v := g.Volumes[name]
		if v == nil {
			return fmt.Errorf("  Failed to find logical volume \"%s/%s\"", g.Name, name)
		}
		for _, tag := range c.options["--addtag"] {
			if !slices.Contains(v.Tags, tag) {
				v.Tags = append(v.Tags, tag)
			}
		}
		v.Tags = slices.DeleteFunc(v.Tags, func(t string) bool { return slices.Contains(c.options["--deltag"], t) })
		var err error
		switch c.value("-a") {
		case "n":
			if err = s.idle(g, name); err == nil {
				delete(v.On, s.Host)
				_ = os.Remove(filepath.Join(s.Dev, g.Name, name))
			}
		case "y", "ey", "sy":
			err = s.activate(g, name, c.value("-a") != "sy")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s Shared) remove(g *Group, c call) error {
	for _, name := range c.names() {
		v := g.Volumes[name]
		if v == nil {
			return fmt.Errorf("  Failed to find logical volume \"%s/%s\"", g.Name, name)
		}
		for host := range v.On {
			if host != s.Host && g.LockType != "" {
				return fmt.Errorf("  LV locked by other host: %s/%s", g.Name, name)
			}
		}
		if err := s.idle(g, name); err != nil {
			return err
		}
		_ = os.Remove(filepath.Join(s.Dev, g.Name, name))
		_ = os.Remove(s.image(name))
		delete(g.Volumes, name)
	}
	return nil
}

func (s Shared) extend(g *Group, c call) error {
	name := c.names()[0]
	v := g.Volumes[name]
	wanted := g.whole(size(c.value("-L")))
	switch {
	case v == nil:
		return fmt.Errorf("  Failed to find logical volume \"%s/%s\"", g.Name, name)
	case wanted == v.Size:
		return fmt.Errorf("  New size (%d extents) matches existing size (%d extents)", wanted/g.Extent, wanted/g.Extent)
	case g.used()+wanted-v.Size > g.Size:
		return fmt.Errorf("  Insufficient free space: %d extents needed, but only %d available", (wanted-v.Size)/g.Extent, (g.Size-g.used())/g.Extent)
	}
	from := v.Size
	v.Size = wanted
	return stale(s.image(name), from, wanted)
}
