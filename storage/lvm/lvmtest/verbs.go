// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"diskhook/storage/command"
)

// The verbs that change the group, each with the exit code and the words of
// lvm(8).

func (g *Group) lvcreate(c call) int {
	if c.has("-s") {
		return g.snapshot(c)
	}
	name := c.value("-n")
	v := &Volume{UUID: lvmUUID(), Tags: c.options["--addtag"], Pool: c.value("--thinpool"), Skip: c.value("-k") == "y"}
	if g.Volumes[name] != nil {
		return fail("  Logical Volume %q already exists in volume group %q", name, g.Name)
	}
	v.Size = roundUp(size(c.value("-L") + c.value("-V")))
	if v.Pool == "" && g.used()+v.Size > g.Size {
		return fail("  Volume group %q has insufficient free space (%d extents): %d required.", g.Name, (g.Size-g.used())/extent, v.Size/extent)
	}
	if v.Pool != "" && g.Volumes[v.Pool] == nil {
		return fail("  Failed to find logical volume \"%s/%s\"", g.Name, v.Pool)
	}
	g.Volumes[name] = v
	if c.value("-a") == "y" {
		return g.activate(name, v)
	}
	return 0
}

// snapshot makes a thin volume of what a thin volume reads as now.
func (g *Group) snapshot(c call) int {
	name, from := c.value("-n"), c.names()[0]
	origin := g.Volumes[from]
	switch {
	case g.Volumes[name] != nil:
		return fail("  Logical Volume %q already exists in volume group %q", name, g.Name)
	case origin == nil:
		return fail("  Failed to find logical volume \"%s/%s\"", g.Name, from)
	case origin.Pool == "":
		return fail("  Snapshot of %s/%s needs a size.", g.Name, from)
	}
	v := &Volume{UUID: lvmUUID(), Tags: c.options["--addtag"], Pool: origin.Pool, Origin: from, Size: origin.Size, Skip: c.value("-k") == "y"}
	if _, err := (command.System{}).Run(context.Background(), command.Cmd{Name: "cp", Args: []string{"--sparse=always", "--", image(from), image(name)}}); err != nil {
		return fail("fake lvm: %v", err)
	}
	g.Volumes[name] = v
	if c.value("-a") == "y" {
		return g.activate(name, v)
	}
	return 0
}

func (g *Group) lvchange(c call) int {
	for _, name := range c.names() {
		v := g.Volumes[name]
		if v == nil {
			return fail("  Failed to find logical volume \"%s/%s\"", g.Name, name)
		}
		for _, tag := range c.options["--addtag"] {
			if !slices.Contains(v.Tags, tag) {
				v.Tags = append(v.Tags, tag)
			}
		}
		v.Tags = slices.DeleteFunc(v.Tags, func(t string) bool { return slices.Contains(c.options["--deltag"], t) })
		if c.has("-p") {
			switch readOnly := c.value("-p") == "r"; {
			case readOnly == v.ReadOnly && readOnly:
				return fail("  Logical volume %s/%s is already read only.", g.Name, name)
			case readOnly == v.ReadOnly:
				return fail("  Logical volume %s/%s is already writable.", g.Name, name)
			default:
				v.ReadOnly = readOnly
			}
		}
		switch active := c.value("-a"); {
		case active == "n" && v.Open:
			return fail("  Logical volume %s/%s in use.", g.Name, name)
		case active == "n":
			g.deactivate(name, v)
		case active == "y" && (!v.Skip || c.has("-K")):
			if code := g.activate(name, v); code != 0 {
				return code
			}
		}
	}
	return 0
}

func (g *Group) lvremove(c call) int {
	for _, name := range c.names() {
		v := g.Volumes[name]
		switch {
		case v == nil:
			return fail("  Failed to find logical volume \"%s/%s\"", g.Name, name)
		case v.Open:
			return fail("  Logical volume %s/%s in use.", g.Name, name)
		}
		g.deactivate(name, v)
		_ = os.Remove(image(name))
		delete(g.Volumes, name)
		for _, snapshot := range g.Volumes {
			if snapshot.Origin == name {
				snapshot.Origin = ""
			}
		}
	}
	return 0
}

func (g *Group) lvextend(c call) int {
	name := c.names()[0]
	v := g.Volumes[name]
	want := roundUp(size(c.value("-L")))
	switch {
	case v == nil:
		return fail("  Failed to find logical volume \"%s/%s\"", g.Name, name)
	case want == v.Size:
		return fail("  New size (%d extents) matches existing size (%d extents).", want/extent, want/extent)
	case v.Pool == "" && g.used()+want-v.Size > g.Size:
		return fail("  Insufficient free space: %d extents needed, but only %d available", (want-v.Size)/extent, (g.Size-g.used())/extent)
	}
	v.Size = want
	if err := os.Truncate(image(name), want); err != nil {
		return fail("fake lvm: %v", err)
	}
	if v.Active {
		if _, err := losetup("-c", v.Loop); err != nil {
			return fail("fake lvm: %v", err)
		}
	}
	return 0
}

// activate puts a loop device behind the volume's node. A linear volume's new
// extents hold what an earlier owner left, here 0xAA, as on a real disk; so do the
// blocks of a pool that does not zero them.
func (g *Group) activate(name string, v *Volume) int {
	if v.Active {
		return 0
	}
	img := image(name)
	if _, err := os.Stat(img); err != nil {
		stale := []byte{}
		if v.Pool == "" || g.Volumes[v.Pool].KeepsOld {
			stale = bytes.Repeat([]byte{0xAA}, int(v.Size))
		}
		err := os.WriteFile(img, stale, 0o600)
		if err == nil {
			err = os.Truncate(img, v.Size)
		}
		if err != nil {
			return fail("fake lvm: %v", err)
		}
	}
	show := []string{"-f", "--show", img}
	if v.ReadOnly {
		show = append([]string{"-r"}, show...)
	}
	loop, err := losetup(show...)
	if err != nil {
		return fail("fake lvm: %v", err)
	}
	v.Loop, v.Active = loop, true
	node := filepath.Join(os.Getenv(EnvDev), g.Name, name)
	if err := os.MkdirAll(filepath.Dir(node), 0o755); err != nil {
		return fail("fake lvm: %v", err)
	}
	if err := os.Symlink(v.Loop, node); err != nil {
		return fail("fake lvm: %v", err)
	}
	return 0
}

func (g *Group) deactivate(name string, v *Volume) {
	if v.Loop == "" {
		return
	}
	_ = os.Remove(filepath.Join(os.Getenv(EnvDev), g.Name, name))
	_, _ = losetup("-d", v.Loop)
	v.Loop, v.Active = "", false
}

func losetup(args ...string) (string, error) {
	result, err := command.System{}.Run(context.Background(), command.Cmd{Name: "losetup", Args: args})
	return strings.TrimSpace(string(result.Stdout)), err
}
