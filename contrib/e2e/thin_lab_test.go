// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"diskhook/storage/thin/layout"
)

// lab are hosts that run at the same time and share a disk. They have no network:
// what one has to tell the other it pins to a board, a second disk that both have,
// and the program that boots them, too, tells there when a boot has ended.
type lab struct {
	hosts   map[string][]labBoot // by the host's name; the boots' names differ from all others
	notices []string             // all that is ever pinned, beside the ends of boots
	also    []string             // files that guests have beside this program
	lun     int64                // the shared disk, in bytes; 0 is pvSize
}

// labBoot is one boot of one of them.
type labBoot struct {
	name string
	do   func(labMachine)
	ends int
}

// run boots all hosts, or does in a guest what is this boot's part.
func (l lab) run(t *testing.T) {
	if step := os.Getenv(stepVariable); step != "" {
		t.Cleanup(func() { explain(t) })
		for name, boots := range l.hosts {
			if i := slices.IndexFunc(boots, func(b labBoot) bool { return b.name == step }); i >= 0 {
				m := labMachine{machine{t}, l, name}
				m.prepare()
				boots[i].do(m)
				return
			}
		}
		t.Fatalf("no boot is called %q", step)
	}
	t.Parallel()
	work := t.TempDir()
	payload, lun, board := filepath.Join(work, "payload"), filepath.Join(work, "lun"), filepath.Join(work, "board")
	host{install: "install"}.pack(t, payload)
	for _, file := range l.also {
		command(t, "cp", file, payload)
	}
	usedDisk(t, lun)
	if err := os.Truncate(lun, max(l.lun, pvSize)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(board, make([]byte, len(l.pins())*pinSize), 0o600); err != nil {
		t.Fatal(err)
	}
	group, ctx := errgroup.WithContext(t.Context())
	for name, boots := range l.hosts {
		group.Go(func() error {
			for _, b := range boots {
				err := boot{name: b.name, ends: b.ends}.run(ctx, t, "--payload", payload, "--shared-disk", lun, "--shared-disk", board, "--state", filepath.Join(work, name), "--memory", "1024")
				if err != nil {
					return err
				}
				f, err := os.OpenFile(board, os.O_RDWR, 0)
				if err != nil {
					return err
				}
				if err := pin(f, l.place(ended(b.name)), ""); err != nil {
					return err
				}
				if err := f.Close(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// ended is the notice that a boot has ended, in whatever way: its host is off.
func ended(boot string) string { return boot + " is off" }

// pins are all notices; each has its place on the board.
func (l lab) pins() []string {
	all := slices.Clone(l.notices)
	for _, boots := range l.hosts {
		for _, b := range boots {
			all = append(all, ended(b.name))
		}
	}
	slices.Sort(all)
	return all
}

// place is -1 for a notice that the lab does not know.
func (l lab) place(notice string) int64 {
	i, found := slices.BinarySearch(l.pins(), notice)
	if !found {
		return -1
	}
	return int64(i) * pinSize
}

// pinSize is room for a notice: its length and one, then what it says.
const pinSize = 16 << 10

func pin(board io.WriterAt, at int64, text string) error {
	b := make([]byte, pinSize)
	binary.LittleEndian.PutUint64(b, uint64(len(text))+1)
	copy(b[8:], text)
	_, err := board.WriteAt(b, at)
	return err
}

// labMachine is a host of the lab, seen from inside.
type labMachine struct {
	machine
	lab  lab
	name string
}

// board opens the board past the page cache, as all hosts write to it.
func (m labMachine) board(notice string, do func(*layout.Volume, int64)) {
	m.Helper()
	at := m.lab.place(notice)
	if at < 0 {
		m.Fatalf("no notice is called %q", notice)
	}
	v, err := layout.Open("/dev/vdc", true)
	m.must(err)
	defer v.Close()
	do(v, at)
}

// tell pins a notice. It ends a boot that failed so far: the others need not wait.
func (m labMachine) tell(notice, text string) {
	m.Helper()
	if m.Failed() {
		m.FailNow()
	}
	m.board(notice, func(v *layout.Volume, at int64) {
		m.must(pin(v, at, text))
		m.must(v.Flush())
	})
	m.Logf("%s, %s: told %q", m.name, m.uptime(), notice)
}

// await waits for a notice and returns what it says. What another host does before it
// tells may take as long as a boot: the host ends with it if it cannot.
func (m labMachine) await(notice string) string {
	m.Helper()
	text := ""
	m.board(notice, func(v *layout.Volume, at int64) {
		b := make([]byte, pinSize)
		for length := uint64(0); length == 0; time.Sleep(200 * time.Millisecond) {
			m.must(m.Context().Err())
			_, err := v.ReadAt(b, at)
			m.must(err)
			if length = binary.LittleEndian.Uint64(b); length > 0 {
				text = string(b[8 : 8+length-1])
			}
		}
	})
	m.Logf("%s, %s: heard %q", m.name, m.uptime(), notice)
	return text
}

// uptime is the guest's, for the log.
func (m labMachine) uptime() string {
	m.Helper()
	text, err := os.ReadFile("/proc/uptime")
	m.must(err)
	seconds, _, _ := strings.Cut(string(text), ".")
	return seconds + " s"
}

// labTimeout is how long a command of LVM may take, as a busy machine emulates it slowly.
const labTimeout = `"10m"`

// prepare makes the guest a host of its own: both come from one image.
func (m labMachine) prepare() {
	m.Helper()
	m.run("hostname", m.name)
	number, _ := slices.BinarySearch(slices.Sorted(maps.Keys(m.lab.hosts)), m.name)
	m.write("/etc/machine-id", machineID(number)+"\n", 0o444)
	m.write("/etc/hostname", m.name+"\n", 0o644)
	m.run("modprobe", "dm-thin-pool")
	if !exists("/usr/bin/diskhook") {
		m.install()
		m.configure(nil)
		m.run("sync")
	}
	m.Logf("%s, %s: begins", m.name, m.uptime())
}

// configure writes the configuration of a host of the lab; see machine.configure. Each
// device that LVM need not look at is time.
func (m labMachine) configure(change map[string]string) {
	m.Helper()
	values := map[string]string{"lvm.timeout": labTimeout, "lvm.devices": `["/dev/vdb"]`}
	maps.Copy(values, change)
	m.machine.configure(values)
}

// machineID is that of the lab's host of that number, from 0 in the order of names.
func machineID(number int) string { return fmt.Sprintf("d15c%028x", number+1) }

// labStatus is what a host tells of the cluster.
type labStatus struct {
	UUID  uuid.UUID
	Epoch uint64
	Hosts []struct {
		Name string
		UUID uuid.UUID
	}
}

func (m labMachine) status() (s labStatus) {
	m.Helper()
	m.must(json.Unmarshal([]byte(m.thin("status", "-o", "json")), &s))
	return s
}

// thinCheck has thin_check(8) look at the metadata of a host whose pool does not run,
// of a cluster on a volume group.
func (m labMachine) thinCheck(s labStatus, vg, host string) {
	m.Helper()
	for _, h := range s.Hosts {
		if h.Name != host {
			continue
		}
		v := m.activated(vg, layout.Host.Name(h.UUID))
		defer v.Close()
		header, _, err := layout.ReadHost(v, s.UUID, h.UUID)
		m.must(err)
		w := header.Windows[header.Active]
		f, err := os.Create("/root/metadata")
		m.must(err)
		_, err = io.Copy(f, io.NewSectionReader(v, int64(w.Offset), int64(w.Length)))
		m.must(errors.Join(err, f.Close()))
		m.run("thin_check", f.Name())
		return
	}
	m.Fatalf("no host %s: %+v", host, s)
}

// activated opens a logical volume. The master may be making its device or taking it
// away at the same time; it lets one be that somebody has open.
func (m labMachine) activated(vg, name string) (v *layout.Volume) {
	m.Helper()
	m.within(name+" is active", func() bool {
		m.run("lvchange", "-ay", vg+"/"+name)
		var err error
		v, err = layout.Open(filepath.Join("/dev", vg, name), false)
		return err == nil
	})
	return v
}
