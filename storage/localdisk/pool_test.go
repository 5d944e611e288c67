// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
	"diskhook/storage/thin/claim"
	"diskhook/storage/thin/member"
)

// pool poses as this host in a thin cluster, with state that outlives each process,
// and volumes that are loop devices. Its labels are real, and it can be killed where
// member.Member can: between label, volume and device. That one is tested with a
// kernel in memory, and beside localdisk in the scripts of cmd/diskhook.
type pool struct {
	layout host.Layout
	labels claim.Labels
}

// poolState is in DISKHOOK_ROOT/pool/state.json.
type poolState struct {
	Volumes             map[string]*poolVolume
	Slack, Free, Total  uint64
	Stopped, MasterAway bool
}

type poolVolume struct {
	UUID     uuid.UUID
	Size     uint64
	Host     string // "" offline, "here", or another
	Open     bool   // as if a guest ran
	Loop     string // while it has its device
	Attached int    // how often it was
}

const poolBlock = 64 << 10

func thePool() *pool {
	layout := host.Layout{Root: os.Getenv("DISKHOOK_ROOT")}
	labels, err := claim.OpenLabels(layout, "san")
	if err != nil {
		panic(err)
	}
	return &pool{layout, labels}
}

func (p *pool) Cluster(name string) (string, error) {
	if name != "" && name != "san" {
		return "", failure.New(failure.NotFound, "cluster %s: it is not defined on this host", name)
	}
	return "san", nil
}

func (p *pool) Pool(_ context.Context, cluster string) (localdisk.Pool, error) {
	_, err := p.Cluster(cluster)
	return p, err
}

func (p *pool) Path(cluster, volume string) string {
	return filepath.Join(p.layout.Run(), "thin", cluster, volume)
}

func (p *pool) file(name string) string { return filepath.Join(p.layout.Root, "pool", name) }

// do works on the state, alone.
func (p *pool) do(work func(*poolState) error) error {
	if err := os.MkdirAll(p.file(""), 0o755); err != nil {
		return err
	}
	l, err := os.OpenFile(p.file("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := syscall.Flock(int(l.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	state := poolState{Volumes: map[string]*poolVolume{}, Slack: 8 << 20, Free: 504 << 20, Total: 512 << 20}
	if b, err := os.ReadFile(p.file("state.json")); err == nil {
		err = json.Unmarshal(b, &state)
		if err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = work(&state)
	return errors.Join(err, atomicfile.WriteJSON(p.file("state.json"), state, 0o600))
}

func (p *pool) Copies(context.Context) (out member.Copies, err error) {
	err = p.do(func(s *poolState) error {
		out = member.Copies{Cluster: uuid.UUID{5}, BlockSize: poolBlock, Slack: s.Slack, Free: s.Free, Total: s.Total}
		if s.Stopped {
			out.Stopped = poolStopped()
		}
		names, err := p.labels.Volumes()
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, name := range names {
			seen[name] = true
		}
		for name, v := range s.Volumes {
			if !seen[name] && v.Host == "here" {
				names = append(names, name)
			}
		}
		for _, name := range names {
			c := member.Copy{Name: name}
			if c.Label, c.Damaged = p.labels.Of(name); c.Label != nil {
				c.UUID = c.Label.Volume
			}
			if v := s.Volumes[name]; v != nil && (c.Label == nil || c.Label.Volume == v.UUID) {
				c.UUID, c.Size, c.Host, c.Here = v.UUID, v.Size, v.Host, v.Host == "here"
				c.Active, c.InUse = v.Loop != "" && !s.Stopped, v.Open
			}
			out.All = append(out.All, c)
		}
		return nil
	})
	return out, err
}

func poolStopped() error {
	return failure.Hint(failure.New(failure.Precondition, "thin cluster san: the pool of this host does not run"), "run `diskhook thin start`")
}

func masterAway() error {
	return failure.Hint(failure.New(failure.Temporary, "thin cluster san: the master did not answer"), "see `diskhook thin status`")
}

func (p *pool) MakeCopy(_ context.Context, n member.NewCopy) error {
	return p.do(func(s *poolState) error {
		need := (n.Size + poolBlock - 1) / poolBlock * poolBlock
		switch {
		case s.Stopped:
			return poolStopped()
		case s.Volumes[n.Name] != nil:
			return failure.New(failure.Conflict, "volume %s: the cluster has one already", n.Name)
		case n.Granted && need > s.Slack && s.MasterAway:
			return masterAway()
		case n.Granted && need > s.Slack:
			more := need - s.Slack
			if more > s.Free {
				return failure.New(failure.NoSpace, "the cluster has %d bytes, %d were asked for", s.Free, more)
			}
			s.Free, s.Slack = s.Free-more, s.Slack+more
		}
		if err := p.labels.Set(n.Name, n.Label); err != nil {
			return err
		}
		if err := failpoint.Hit("thin.copy.labelled"); err != nil {
			return err
		}
		if s.MasterAway {
			return masterAway()
		}
		s.Volumes[n.Name] = &poolVolume{UUID: n.Label.Volume, Size: n.Size}
		if err := atomicfile.WriteJSON(p.file("state.json"), s, 0o600); err != nil {
			return err
		}
		if err := failpoint.Hit("thin.copy.made"); err != nil {
			return err
		}
		if err := os.WriteFile(p.file(n.Name+".img"), nil, 0o600); err != nil {
			return err
		}
		return p.attach(s, n.Name)
	})
}

// attach gives a volume its device. An image that was taken away reads as nothing.
func (p *pool) attach(s *poolState, name string) error {
	v, img := s.Volumes[name], p.file(name+".img")
	if v.Host != "here" {
		if s.MasterAway {
			return masterAway()
		}
		v.Host, v.Attached = "here", v.Attached+1
	}
	if v.Loop != "" {
		return nil
	}
	if err := os.Truncate(img, int64(v.Size)); err != nil {
		return err
	}
	loop, err := losetup("-f", "--show", img)
	if err != nil {
		return err
	}
	v.Loop = loop
	link := p.Path("san", name)
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	_ = os.Remove(link)
	return os.Symlink(loop, link)
}

func (p *pool) detach(v *poolVolume, name string) error {
	_ = os.Remove(p.Path("san", name))
	if v.Loop == "" {
		return nil
	}
	_, err := losetup("-d", v.Loop)
	v.Loop = ""
	return err
}

func losetup(args ...string) (string, error) {
	out, err := exec.Command("losetup", args...).Output()
	return strings.TrimSpace(string(out)), err
}

func (p *pool) Relabel(_ context.Context, name string, label claim.Label) error {
	return p.do(func(s *poolState) error {
		if v := s.Volumes[name]; v != nil && v.UUID != label.Volume {
			return failure.New(failure.Conflict, "volume %s: it is not %s", name, label.Volume)
		}
		return p.labels.Set(name, label)
	})
}

func (p *pool) HoldCopies(_ context.Context, copies map[string]uuid.UUID) error {
	return p.do(func(s *poolState) error {
		if s.Stopped {
			return poolStopped()
		}
		for name, id := range copies {
			v := s.Volumes[name]
			if v == nil || v.UUID != id || v.Host != "" && v.Host != "here" {
				return failure.New(failure.Conflict, "volume %s: it is %+v, and not %s", name, v, id)
			}
			if err := p.attach(s, name); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *pool) RemoveCopy(_ context.Context, name string, id uuid.UUID) error {
	return p.do(func(s *poolState) error {
		if s.MasterAway {
			return masterAway()
		}
		if v := s.Volumes[name]; v != nil && v.UUID == id {
			if v.Open {
				return failure.New(failure.Conflict, "volume %s: its device is in use", name)
			}
			if err := p.detach(v, name); err != nil {
				return err
			}
			delete(s.Volumes, name)
			_ = os.Remove(p.file(name + ".img"))
			if err := atomicfile.WriteJSON(p.file("state.json"), s, 0o600); err != nil {
				return err
			}
		}
		if err := failpoint.Hit("thin.copy.deleted"); err != nil {
			return err
		}
		return p.labels.Drop(name)
	})
}

func (p *pool) Resize(_ context.Context, name string, size uint64) error {
	return p.do(func(s *poolState) error {
		v := s.Volumes[name]
		v.Size = size
		if v.Loop == "" {
			return nil
		}
		if err := os.Truncate(p.file(name+".img"), int64(size)); err != nil {
			return err
		}
		_, err := losetup("-c", v.Loop)
		return err
	})
}

// reboot takes all devices away. The next start of the pool has them again: here the
// one that activates does.
func (p *pool) reboot() error {
	return p.do(func(s *poolState) error {
		for name, v := range s.Volumes {
			v.Open = false
			if err := p.detach(v, name); err != nil {
				return err
			}
		}
		return nil
	})
}
