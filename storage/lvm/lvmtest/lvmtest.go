// SPDX-License-Identifier: Apache-2.0

// Package lvmtest is a program that poses as lvm(8) where there is no
// device-mapper, so that tests can kill diskhook at every step on any machine.
//
// A test binary calls Main when it is started as "lvm". The one volume group
// lives in a JSON file; each active volume is a loop device with a node in a
// /dev of the test's own, so that copies are written to real block devices.
// Every command line is appended to a log for the test to assert on. It takes
// the options that package lvm uses and refuses all others. The real LVM is
// tested beside it, in package lvm and in the test guest.
package lvmtest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/uuid"
)

// Environment of the fake, all below the test's directory.
const (
	EnvState = "DISKHOOK_LVM_STATE" // directory: vg.json, log, NAME.img
	EnvDev   = "DISKHOOK_DEV"       // what /dev is for the test
)

const extent = 4 << 20 // lvm.conf(5), allocation/physical_extent_size

// Group is the volume group, as kept in vg.json.
type Group struct {
	Name    string
	UUID    string
	Size    int64
	Volumes map[string]*Volume

	// Of a group on files that several hosts share (Shared).
	LockType string `json:",omitempty"`
	Extent   int64  `json:",omitempty"`
}

// Volume is one logical volume.
type Volume struct {
	UUID     string
	Size     int64
	Tags     []string
	Pool     string // thin volume
	Origin   string // thin snapshot, while that is there
	IsPool   bool
	KeepsOld bool // pool: it hands blocks out with what an earlier owner left in them
	Skip     bool
	ReadOnly bool
	Active   bool
	Open     bool   // set by a test: as if a guest ran
	Loop     string // while active

	// On are the hosts that have it active in a Shared group: exclusively or not.
	On map[string]bool `json:",omitempty"`
}

// Create makes an empty group in dir (EnvState) with a thin pool if pool is
// not "".
func Create(dir, name, pool string, size int64) error {
	g := Group{Name: name, UUID: lvmUUID(), Size: size, Volumes: map[string]*Volume{}}
	if pool != "" {
		g.Volumes[pool] = &Volume{UUID: lvmUUID(), Size: size / 2, IsPool: true, Active: true}
	}
	return g.save(dir)
}

// Load reads the group back.
func Load(dir string) (*Group, error) {
	var g Group
	b, err := os.ReadFile(filepath.Join(dir, "vg.json"))
	if err != nil {
		return nil, err
	}
	return &g, json.Unmarshal(b, &g)
}

// Change lets a test alter the group: set Open, take a volume away.
func Change(dir string, change func(*Group)) error {
	g, err := Load(dir)
	if err != nil {
		return err
	}
	change(g)
	return g.save(dir)
}

// Log returns the command lines so far, without the configuration.
func Log(dir string) []string {
	b, _ := os.ReadFile(filepath.Join(dir, "log"))
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// Reboot takes all devices away.
func Reboot(dir string) error {
	return Change(dir, func(g *Group) {
		for name, v := range g.Volumes {
			v.Open = false
			g.deactivate(name, v)
		}
	})
}

func (g *Group) save(dir string) error {
	b, err := json.MarshalIndent(g, "", " ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "vg.json.new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "vg.json"))
}

// Main is the program; args are those after "lvm". It returns the exit code.
func Main(args []string) int {
	dir := os.Getenv(EnvState)
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		return fail("fake lvm: %v", err)
	}
	defer lock.Close()
	c, err := parse(args)
	if err != nil {
		return fail("%v", err)
	}
	if err := c.log(dir); err != nil {
		return fail("fake lvm: %v", err)
	}
	g, err := Load(dir)
	if err != nil || c.vg() != g.Name {
		return fail("  Volume group %q not found\n  Cannot process volume group %s", c.vg(), c.vg())
	}
	run, known := verbs[c.verb]
	if !known {
		return fail("  No such command '%s'.", c.verb)
	}
	if code := run(g, c); code != 0 {
		return code
	}
	if err := g.save(dir); err != nil {
		return fail("fake lvm: %v", err)
	}
	return 0
}

// fail prints as lvm does and returns ECMD_FAILED, which is all that lvm's
// exit code says.
func fail(format string, args ...any) int {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	return 5
}

var verbs = map[string]func(*Group, call) int{
	"fullreport": (*Group).report,
	"lvcreate":   (*Group).lvcreate,
	"lvchange":   (*Group).lvchange,
	"lvremove":   (*Group).lvremove,
	"lvextend":   (*Group).lvextend,
}

func (g *Group) used() (n int64) {
	for _, v := range g.Volumes {
		if v.Pool == "" {
			n += v.Size
		}
	}
	return n
}

func image(name string) string { return filepath.Join(os.Getenv(EnvState), name+".img") }

func roundUp(n int64) int64 { return (n + extent - 1) / extent * extent }

func size(s string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSuffix(s, "b"), 10, 64)
	return n
}

// lvmUUID has LVM's form: 6-4-4-4-4-4-6 characters.
func lvmUUID() string {
	s := strings.ReplaceAll(uuid.NewString(), "-", "")
	return s[:6] + "-" + s[6:10] + "-" + s[10:14] + "-" + s[14:18] + "-" + s[18:22] + "-" + s[22:26] + "-" + s[26:32]
}
