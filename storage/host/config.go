// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/dustin/go-humanize"

	"diskhook/storage/failure"
)

// Config is diskhook.toml. Every key has a default that works, so that no
// file is needed.
type Config struct {
	Paths      Paths      `toml:"paths"`
	Local      Local      `toml:"local"`
	LVM        LVM        `toml:"lvm"`
	Managed    Managed    `toml:"managed"`
	Quorum     Quorum     `toml:"quorum"`
	Repository Repository `toml:"repository"`
	Thin       Thin       `toml:"thin"`
	Rules      []Rule     `toml:"rule"`
}

// Paths bounds what diskhook may read disks from.
type Paths struct {
	// Roots are the directories below which a source may lie, symlinks
	// resolved.
	Roots []string `toml:"roots"`
}

// Local configures local copies.
type Local struct {
	Backend  string   `toml:"backend"`  // lvm, lvmthin, dir or thin
	VG       string   `toml:"vg"`       // volume group of lvm and lvmthin
	Pool     string   `toml:"pool"`     // thin pool of lvmthin, in VG
	Dir      string   `toml:"dir"`      // directory of dir
	Sparse   bool     `toml:"sparse"`   // dir, thin: do not preallocate
	Deadline Duration `toml:"deadline"` // how long a libvirt hook waits for a copy
	Reserve  Size     `toml:"reserve"`  // bytes to leave free in file system or VG
	// PoolReserve is the share of a thin pool, or of a thin cluster, in percent, to
	// leave free.
	PoolReserve int  `toml:"pool_reserve"`
	Rate        Size `toml:"rate"` // bytes per second of one copy; 0 is no limit
	// IOClass is that of copies, ioprio_set(2): "best-effort", the lowest of the
	// normal priorities, or "idle", only when nobody else wants the disk.
	IOClass string `toml:"io_class"`
	// Cache is "auto", which keeps templates where clones are cheap, or "off".
	Cache string `toml:"cache"`
	// CacheMinAge is how long a template stays after its last use, though no
	// copy is a clone of it.
	CacheMinAge Duration `toml:"cache_min_age"`
}

// LVM configures how lvm is called.
type LVM struct {
	// Devices, when set, are the only devices LVM may look at (globs are not
	// taken); empty leaves LVM's own configuration in force but for the
	// devices file, which hides local volume groups on oVirt hosts.
	Devices []string `toml:"devices"`
	Timeout Duration `toml:"timeout"`
}

// Managed configures managed volumes.
type Managed struct {
	Database string   `toml:"database"`
	Adapters []string `toml:"adapters"`
}

// Quorum configures replica sets.
type Quorum struct {
	Daemon      string   `toml:"daemon"`
	HangTimeout Duration `toml:"hang_timeout"`
}

// Repository configures storage repositories.
type Repository struct {
	HostID   int      `toml:"host_id"`
	Deadline Duration `toml:"deadline"`
}

// Thin configures the thin-cluster.
type Thin struct {
	Cluster string `toml:"cluster"`
}

// Rule binds disks in rewrite and apply; never at a start. Name, Target and
// Path are globs (path.Match); an empty one fits everything.
type Rule struct {
	Name    string `toml:"name"`
	Target  string `toml:"target"`
	Path    string `toml:"path"`
	Binding string `toml:"binding"` // "local=lvmthin,on-stop=keep"
}

// Defaults is the configuration of a host without a file.
func Defaults(l Layout) Config {
	return Config{
		Paths: Paths{Roots: []string{
			l.at("/var/lib/libvirt/images"), l.at("/rhev/data-center"), l.at("/run/vdsm/storage"),
			l.at("/srv"), l.at("/mnt"), l.at("/media"), l.at("/dev/mapper"), l.at("/dev/disk"),
		}},
		Local: Local{
			Backend: "dir", VG: "ovirt-local", Pool: "pool0", Dir: l.LocalDir(),
			Deadline: Duration(20 * time.Second), Reserve: 1 << 30, PoolReserve: 5,
			IOClass: "best-effort", Cache: "auto", CacheMinAge: Duration(24 * time.Hour),
		},
		LVM:        LVM{Timeout: Duration(60 * time.Second)},
		Managed:    Managed{Database: filepath.Join(l.State(), "managedvolume.db")},
		Quorum:     Quorum{HangTimeout: Duration(10 * time.Second)},
		Repository: Repository{Deadline: Duration(10 * time.Second)},
	}
}

// Load reads the configuration over the defaults. A file that is not there is
// fine. Unknown keys and values out of range come back as one error beside a
// usable configuration: a CLI stops at it, a hook logs it and goes on.
func Load(l Layout) (Config, error) {
	c := Defaults(l)
	md, err := toml.DecodeFile(l.Config(), &c)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return Defaults(l), invalid(l, err)
	}
	var problems []error
	for _, key := range md.Undecoded() {
		problems = append(problems, fmt.Errorf("unknown key %s", key))
	}
	if err := errors.Join(append(problems, c.correct(Defaults(l)))...); err != nil {
		return c, invalid(l, err)
	}
	return c, nil
}

func invalid(l Layout, err error) error {
	err = failure.New(failure.Usage, "%s: %w", l.Config(), err)
	return failure.Hint(err, "correct the file; `diskhook config show --origin` explains each key")
}

// correct gives back to the default each value that is wrong, and says which.
func (c *Config) correct(defaults Config) error {
	var problems []error
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if len(c.Paths.Roots) == 0 {
		wrong("paths.roots: it is empty, so that no disk may lie anywhere")
		c.Paths.Roots = defaults.Paths.Roots
	}
	c.Paths.Roots = slices.DeleteFunc(slices.Clone(c.Paths.Roots), func(root string) bool {
		if filepath.IsAbs(root) {
			return false
		}
		wrong("paths.roots: %q is not absolute", root)
		return true
	})
	for _, key := range []struct {
		value   *string
		ok      bool
		defined string
		format  string
	}{
		{&c.Local.Backend, oneOf(c.Local.Backend, "lvm", "lvmthin", "dir", "thin"), defaults.Local.Backend, "local.backend: %q is not lvm, lvmthin, dir or thin"},
		{&c.Local.VG, LVMName(c.Local.VG), defaults.Local.VG, "local.vg: %q is not a volume group name"},
		{&c.Local.Pool, LVMName(c.Local.Pool), defaults.Local.Pool, "local.pool: %q is not a logical volume name"},
		{&c.Local.Dir, filepath.IsAbs(c.Local.Dir), defaults.Local.Dir, "local.dir: %q is not absolute"},
		{&c.Local.IOClass, oneOf(c.Local.IOClass, "best-effort", "idle"), defaults.Local.IOClass, "local.io_class: %q is not best-effort or idle"},
		{&c.Local.Cache, oneOf(c.Local.Cache, "auto", "off"), defaults.Local.Cache, "local.cache: %q is not auto or off"},
	} {
		if !key.ok {
			wrong(key.format, *key.value)
			*key.value = key.defined
		}
	}
	if c.Local.PoolReserve < 0 || c.Local.PoolReserve >= 100 {
		wrong("local.pool_reserve: %d is not a percentage", c.Local.PoolReserve)
		c.Local.PoolReserve = defaults.Local.PoolReserve
	}
	c.LVM.Devices = slices.DeleteFunc(slices.Clone(c.LVM.Devices), func(dev string) bool {
		if strings.HasPrefix(dev, "/dev/") && !strings.ContainsAny(dev, "|\"' \n") {
			return false
		}
		wrong("lvm.devices: %q is not a device path", dev)
		return true
	})
	for i, r := range c.Rules {
		for what, glob := range map[string]string{"name": r.Name, "target": r.Target, "path": r.Path} {
			if _, err := filepath.Match(glob, ""); err != nil {
				wrong("rule %d: %s: %q is not a glob", i+1, what, glob)
			}
		}
		if r.Binding == "" {
			wrong("rule %d: binding is missing", i+1)
		}
	}
	return errors.Join(problems...)
}

func oneOf(s string, options ...string) bool {
	for _, o := range options {
		if s == o {
			return true
		}
	}
	return false
}

// LVMName says whether s may name a volume group or logical volume
// (lvm(8), "Valid names"): no leading hyphen, no path, none of the dots.
func LVMName(s string) bool {
	if len(s) == 0 || len(s) > 127 || s[0] == '-' || s == "." || s == ".." {
		return false
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("+_.-", r)) {
			return false
		}
	}
	return true
}

// Duration is a time.Duration written "20s".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err == nil && v < 0 {
		err = fmt.Errorf("%q is negative", text)
	}
	*d = Duration(v)
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Size is a number of bytes, written 1073741824, "1GiB" or "1G" (both powers
// of 1024).
type Size int64

// UnmarshalTOML takes an integer or a string.
func (s *Size) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case int64:
		*s = Size(v)
		if v < 0 {
			return fmt.Errorf("%d is negative", v)
		}
		return nil
	case string:
		n, err := ParseSize(v)
		*s = Size(n)
		return err
	}
	return fmt.Errorf("%v is not a size", v)
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(humanize.IBytes(uint64(s))), nil }

// ParseSize reads "10G", "10GiB" or a count of bytes; letters are powers of
// 1024, as in lvm(8) and qemu-img(1).
func ParseSize(text string) (int64, error) {
	if !regexp.MustCompile(`^[0-9]+(\.[0-9]+)?([KMGTPE](i?B)?|B)?$`).MatchString(text) {
		return 0, failure.New(failure.Usage, "%q is not a size such as 10G", text)
	}
	iec := text
	if i := strings.IndexAny(text, "KMGTPE"); i >= 0 {
		iec = text[:i+1] + "iB"
	}
	n, err := humanize.ParseBytes(iec)
	if err != nil || n > 1<<62 {
		return 0, failure.New(failure.Usage, "%q is not a size such as 10G", text)
	}
	return int64(n), nil
}
