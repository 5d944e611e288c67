// SPDX-License-Identifier: Apache-2.0

// Package connectortest poses as a host and its storage: a tree with sysfs,
// /dev and /etc, the kernel's answers to what is written there, and the
// programs that connectors run. All state is in files, so that a test may kill
// the process that works on it and go on in another.
//
// It knows what it was told of the real ones by their documentation. It
// stands beside tests with real storage, never instead of them.
package connectortest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
)

// Storage is what is on the other side of the network, and how the host is set up.
type Storage struct {
	ISCSI map[string]*Target        // by IQN
	FC    map[string]map[uint64]LUN // by port name, then LUN as the kernel numbers it
	NVMe  map[string]*Subsystem     // by NQN
	RBD   map[string]Image          // by POOL/IMAGE
	NFS   map[string]map[string]int // by export: files and their sizes

	Multipathd bool     // runs
	SaysNo     bool     // multipathd, to a path that it gets from udev at that moment, too
	Blacklist  []string // WWIDs of which multipathd makes no map
	Open       []string // nodes that somebody has open
	Probed     []string // nodes that udev looks at until it is waited for
}

// Target is an iSCSI target.
type Target struct {
	Portals  []string // "10.0.0.5:3260"
	Dead     []string // those that do not answer
	LUNs     map[uint64]LUN
	Username string
	Password string
	// Others are LUNs that a portal serves instead of LUNs.
	Others map[string]map[uint64]LUN
}

// LUN is a SCSI disk.
type LUN struct {
	Designator string // "naa.6001…"
	Sectors    int64
}

// Subsystem is an NVMe subsystem.
type Subsystem struct {
	Portals    []string // "tcp 1.1.1.1 4420"
	Namespaces map[int]Namespace
}

// Namespace is one of a subsystem.
type Namespace struct {
	UUID, NGUID string
	Sectors     int64
}

// Image is an RBD image.
type Image struct {
	Keyring string // that must be presented
	ID      string
	Sectors int64
}

// World is the host. Change its storage with Change.
type World struct {
	Dir string

	mu     sync.Mutex
	lines  []string
	broken error
}

// New makes an empty host below dir, or returns the one that is there.
func New(dir string) (*World, error) {
	w := &World{Dir: dir}
	if _, err := os.Stat(w.at("storage.json")); err == nil {
		return w, nil
	}
	if err := w.boot(); err != nil {
		return nil, err
	}
	return w, errors.Join(
		w.write("etc/machine-id", "0123456789abcdef0123456789abcdef"),
		w.write("etc/iscsi/initiatorname.iscsi", "# comment\nInitiatorName=iqn.1993-08.org.debian:01:abc"),
		w.save(Storage{Multipathd: true}))
}

// boot makes what a boot makes.
func (w *World) boot() error {
	for _, dir := range []string{"sys/class/block", "sys/class/scsi_host", "sys/class/iscsi_session", "sys/class/iscsi_connection",
		"sys/bus/scsi/devices", "sys/bus/rbd/devices", "sys/class/nvme", "dev/mapper", "run"} {
		if err := os.MkdirAll(w.at(dir), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		w.write("sys/module/nvme_core/parameters/multipath", "Y"),
		w.write("proc/self/mountinfo", "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw"),
		w.write("proc/boot", fmt.Sprintf("boot-%d", time.Now().UnixNano())))
}

// Reboot loses what memory held.
func (w *World) Reboot() error {
	for _, dir := range []string{"sys", "dev", "run", "proc"} {
		if err := os.RemoveAll(w.at(dir)); err != nil {
			return err
		}
	}
	return errors.Join(w.Change(func(s *Storage) { s.Open = nil }), w.boot())
}

// Boot is for managed.Service.
func (w *World) Boot() (string, error) { return w.attr("proc/boot"), nil }

// Host is this world for connectors.
func (w *World) Host(log *slog.Logger) *connector.Host {
	return &connector.Host{
		Run: w, Log: log, Root: w.Dir, Private: w.at("run/diskhook/managed"), Mounts: w.at("run/diskhook/mounts"),
		Pause: time.Millisecond, Patience: 200 * time.Millisecond, InUse: w.inUse, Opened: w.opened, WriteAttr: w.WriteAttr, Resolve: resolve,
	}
}

// Change changes the storage.
func (w *World) Change(change func(*Storage)) error {
	s, err := w.storage()
	if err != nil {
		return err
	}
	change(&s)
	return w.save(s)
}

func (w *World) storage() (Storage, error) {
	var s Storage
	b, err := os.ReadFile(w.at("storage.json"))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(b, &s)
}

func (w *World) save(s Storage) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return w.write("storage.json", string(b))
}

func (w *World) inUse(path string) (string, bool, error) {
	if _, gone := os.Stat(path); gone != nil {
		return "", false, failure.Wrap(failure.NotFound, gone)
	}
	// As the kernel's claim of a device that another is made of.
	if holders := w.glob("sys/class/block/" + filepath.Base(path) + "/holders/*"); len(holders) > 0 {
		return "device " + filepath.Base(holders[0]), true, nil
	}
	return w.opened(path)
}

// opened is blockdev.Opened.
func (w *World) opened(path string) (string, bool, error) {
	s, err := w.storage()
	if slices.Contains(s.Probed, w.rel(path)) {
		return "process 41 ((udev-worker))", true, nil
	}
	return "process 42 (qemu-system-x86)", err == nil && slices.Contains(s.Open, w.rel(path)), err
}

// Lines are the commands so far, with the world's directory left out.
func (w *World) Lines() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lines)
}

// Forget empties Lines.
func (w *World) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = nil
}

// Left lists what an attach made and a detach should have taken away.
func (w *World) Left() []string {
	var left []string
	for _, pattern := range []string{"sys/class/block/*", "sys/class/iscsi_session/*", "sys/bus/scsi/devices/*", "sys/class/nvme/*",
		"sys/bus/rbd/devices/*", "dev/mapper/*", "etc/iscsi/nodes/*", "etc/iscsi/.*", "run/diskhook/managed/*", "run/diskhook/mounts/*", "run/diskhook/volumes/*"} {
		found, _ := filepath.Glob(w.at(pattern))
		for _, path := range found {
			left = append(left, w.rel(path))
		}
	}
	return left
}

// tool is a program: what it prints to stdout and stderr, and its code.
type tool func(w *World, s *Storage, cmd command.Cmd) (stdout, stderr string, code int)

func tools() map[string]tool {
	return map[string]tool{
		"iscsiadm": iscsiadm, "multipath": multipath, "multipathd": multipathd, "blockdev": blockdev,
		"nvme": nvme, "rbd": rbd, "mount": mount, "umount": umount, "udevadm": udevadm,
		"modprobe": modprobe,
	}
}

// udevadm: whatever comes is there at once, and looked at until now.
func udevadm(w *World, s *Storage, _ command.Cmd) (string, string, int) {
	if len(s.Probed) > 0 {
		s.Probed = nil
		w.need(w.save(*s))
	}
	return "", "", 0
}

// Run implements command.Runner.
func (w *World) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	run, ok := tools()[cmd.Name]
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, strings.ReplaceAll(cmd.String(), w.Dir, ""))
	if err := ctx.Err(); err != nil {
		return command.Result{}, &command.Error{Argv: cmd.Argv(), Code: -1, Err: err}
	}
	if !ok {
		return command.System{}.Run(ctx, cmd) // an adapter, by its path
	}
	s, err := w.storage()
	if err != nil {
		return command.Result{}, err
	}
	stdout, stderr, code := run(w, &s, cmd)
	if w.broken != nil {
		return command.Result{}, w.broken
	}
	result := command.Result{Stdout: []byte(stdout), Stderr: []byte(stderr)}
	if code != 0 {
		return result, &command.Error{Argv: cmd.Argv(), Code: code, Stderr: stderr}
	}
	return result, nil
}

func (w *World) at(path string) string { return filepath.Join(w.Dir, path) }

func (w *World) rel(path string) string { return strings.TrimPrefix(path, w.Dir) }

func (w *World) write(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(w.at(path)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(w.at(path), []byte(content+"\n"), 0o600)
}

func (w *World) attr(path string) string {
	b, _ := os.ReadFile(w.at(path))
	return strings.TrimSpace(string(b))
}

// need notes that something failed which the test has under its own control.
// What goes on after that is of no use: Run and WriteAttr fail.
func (w *World) need(err error) {
	if err != nil && w.broken == nil {
		w.broken = fmt.Errorf("the world of the test is broken: %w", err)
	}
}

func (w *World) has(path string) bool {
	_, err := os.Lstat(w.at(path))
	return err == nil
}

func (w *World) glob(pattern string) []string {
	found, err := filepath.Glob(w.at(pattern))
	w.need(err)
	return found
}

func (w *World) symlink(to, path string) {
	w.need(os.MkdirAll(filepath.Dir(w.at(path)), 0o755))
	target, err := filepath.Rel(filepath.Dir(w.at(path)), w.at(to))
	w.need(err)
	_ = os.Remove(w.at(path))
	w.need(os.Symlink(target, w.at(path)))
}

func (w *World) remove(paths ...string) {
	for _, path := range paths {
		w.need(os.RemoveAll(w.at(path)))
	}
}

// free is the first name of the pattern that no block device has.
func (w *World) free(name func(i int) string) string {
	for i := 0; ; i++ {
		if n := name(i); !w.has("sys/class/block/" + n) {
			return n
		}
	}
}

// WriteAttr is the kernel's side of writing to sysfs.
func (w *World) WriteAttr(path, value string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, err := w.storage()
	if err != nil {
		return err
	}
	rel := w.rel(path)
	w.lines = append(w.lines, "write "+rel+" "+value)
	if err := w.kernel(&s, rel, value); err != nil {
		return err
	}
	return w.broken
}

// kernel does what the kernel does with what is written to an attribute.
func (w *World) kernel(s *Storage, rel, value string) error {
	switch filepath.Base(rel) {
	case "scan":
		return w.scan(s, strings.TrimPrefix(filepath.Base(filepath.Dir(rel)), "host"), value)
	case "rescan":
		return w.rescan(s, filepath.Base(filepath.Dir(rel)))
	case "delete":
		return w.deleteDevice(filepath.Base(filepath.Dir(rel)))
	case "rescan_controller":
		w.showNamespaces(s, w.attr(filepath.Join(filepath.Dir(rel), "subsysnqn")))
		return nil
	}
	return fmt.Errorf("%s: %w", rel, os.ErrNotExist)
}

// Write makes a file of the host, such as one of sysfs, by its path below the root.
func (w *World) Write(path, content string) error { return w.write(path, content) }
