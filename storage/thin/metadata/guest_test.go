// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package metadata_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/directio"
	"diskhook/storage/thin/metadata"
)

// inGuest is set where this test binary runs itself in the test guest, whose
// kernel has device-mapper.
const inGuest = "DISKHOOK_IN_GUEST"

// TestKernelTakesOurMetadata has a real kernel use an image of the Builder: it
// reads and writes where the image says, copies what is shared and only that,
// and gives away what nobody maps.
func TestKernelTakesOurMetadata(t *testing.T) {
	if os.Getenv(inGuest) == "" {
		runInGuest(t)
		return
	}
	g := guest{T: t, meta: "/dev/vdb", data: "/dev/vdc"}
	g.number()
	t.Run("unfinished", func(t *testing.T) { guest{t, g.meta, g.data}.unfinished() })
	t.Run("used", func(t *testing.T) { guest{t, g.meta, g.data}.used() })
}

func runInGuest(t *testing.T) {
	self, err := os.Executable()
	must(t, err)
	program, err := os.ReadFile(self)
	must(t, err)
	payload, disks := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(payload, "metadata.test"), program, 0o755))
	run := exec.CommandContext(t.Context(), "../../../contrib/testguest/run",
		"--payload", payload, "--disk-size", "16M", "--disk", filepath.Join(disks, "metadata"),
		"--disk-size", "64M", "--disk", filepath.Join(disks, "data"), "--timeout", "900",
		"--", "env", inGuest+"=1", "./metadata.test", "-test.v", "-test.run", "^TestKernelTakesOurMetadata$")
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// A guest that ran nothing has not passed.
	if n := bytes.Count(out, []byte("    --- PASS: TestKernelTakesOurMetadata/")); n != 2 {
		t.Fatalf("%d of 2 parts passed\n%s", n, out)
	}
}

type guest struct {
	*testing.T
	meta, data string
}

// The pool in the guest: data blocks of 64 KiB, each of which begins with its
// own number. The last hundred belong to nobody.
const (
	dataBlock  = 64 << 10
	dataBlocks = 1024
	firstFree  = 924
	metaBlocks = 4096
)

func (g guest) number() {
	f, err := os.OpenFile(g.data, os.O_RDWR, 0)
	must(g, err)
	defer f.Close()
	for i := range uint64(dataBlocks) {
		_, err := f.WriteAt(numbered(i), int64(i)*dataBlock)
		must(g, err)
	}
	must(g, f.Sync())
}

// numbered is a block that begins with a number and goes on with zeros.
func numbered(n uint64) []byte {
	return binary.LittleEndian.AppendUint64(make([]byte, 0, dataBlock), n)[:dataBlock]
}

// at is the number that a block of a device begins with.
func (g guest) at(device string, block uint64) uint64 {
	g.Helper()
	f, err := os.Open(device)
	must(g, err)
	defer f.Close()
	b := directio.Buffer(4096)
	_, err = directio.New(f).ReadAt(b, int64(block)*dataBlock)
	must(g, err)
	return binary.LittleEndian.Uint64(b)
}

// write begins a block of a device with another number.
func (g guest) write(device string, block, n uint64) {
	g.Helper()
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	must(g, err)
	defer f.Close()
	b := directio.Buffer(4096)
	binary.LittleEndian.PutUint64(b, n)
	_, err = directio.New(f).WriteAt(b, int64(block)*dataBlock)
	must(g, err)
	must(g, f.Sync())
}

func (g guest) dmsetup(args ...string) string {
	g.Helper()
	out, err := exec.Command("dmsetup", args...).CombinedOutput()
	if err != nil {
		g.Fatalf("dmsetup %q: %v: %s", args, err, out)
	}
	return string(out)
}

func (g guest) table() string {
	return fmt.Sprintf("0 %d thin-pool %s %s 128 0 1 no_discard_passdown", dataBlocks*128, g.meta, g.data)
}

// builder begins an image on the metadata device.
func (g guest) builder() *metadata.Builder {
	b, err := metadata.NewBuilder(open(g, g.meta), metaBlocks, metadata.Superblock{Time: 1, TransactionID: 7, DataBlockSize: 128, DataBlocks: dataBlocks})
	must(g, err)
	return b
}

// unfinished: the kernel refuses an image whose writing was cut short, and does
// not make an empty pool of it.
func (g guest) unfinished() {
	g.builder()
	out, err := exec.Command("dmsetup", "create", "pool", "--table", g.table()).CombinedOutput()
	if err == nil {
		g.Fatal("the kernel took it")
	}
	g.Logf("%s", out)
	begin := make([]byte, 64)
	f, err := os.Open(g.meta)
	must(g, err)
	defer f.Close()
	_, err = f.ReadAt(begin, 0)
	must(g, err)
	if !strings.HasPrefix(string(begin), "diskhook: ") {
		g.Fatalf("the kernel wrote %q", begin)
	}
}

func (g guest) used() {
	b := g.builder()
	must(g, b.Device(metadata.Device{ID: 0}))
	must(g, b.Map(metadata.Run{Origin: 0, Data: 0, Length: 800}))
	must(g, b.Map(metadata.Run{Origin: 824, Data: 824, Length: firstFree - 824}))
	must(g, b.Device(metadata.Device{ID: 5, SnapTime: 1, Transaction: 3}))
	must(g, b.Map(metadata.Run{Origin: 10, Data: 800, Length: 24, Time: 1})) // its own
	must(g, b.Map(metadata.Run{Origin: 34, Data: 100, Length: 6}))           // shared with disk 0
	must(g, b.Finish())

	const thin = "/dev/mapper/five"
	g.dmsetup("create", "pool", "--table", g.table())
	g.dmsetup("create", "five", "--table", fmt.Sprintf("0 %d thin /dev/mapper/pool 5", dataBlocks*128))
	for block, want := range map[uint64]uint64{9: 0, 10: 800, 33: 823, 34: 100, 39: 105, 40: 0} {
		if got := g.at(thin, block); got != want {
			g.Errorf("block %d reads as data block %d, want %d", block, got, want)
		}
	}
	g.write(thin, 11, 5011) // in place
	g.write(thin, 35, 5035) // copied
	g.write(thin, 50, 5050) // new
	for block, want := range map[uint64]uint64{801: 5011, 101: 101} {
		if got := g.at(g.data, block); got != want {
			g.Errorf("data block %d begins with %d, want %d", block, got, want)
		}
	}
	g.readLive()

	// A discard of disk 0 gives its blocks to the pool.
	before := g.inUse()
	g.dmsetup("create", "zero", "--table", fmt.Sprintf("0 %d thin /dev/mapper/pool 0", dataBlocks*128))
	out, err := exec.Command("blkdiscard", "-o", fmt.Sprint(500*dataBlock), "-l", fmt.Sprint(20*dataBlock), "/dev/mapper/zero").CombinedOutput()
	if err != nil {
		g.Fatalf("blkdiscard: %v: %s", err, out)
	}
	if after := g.inUse(); after != before-20 {
		g.Errorf("%d data blocks are in use after 20 of %d were given away", after, before)
	}
	for _, name := range []string{"zero", "five", "pool"} {
		g.dmsetup("remove", "--retry", name)
	}

	report, err := metadata.Check(g.Context(), open(g, g.meta), metaBlocks, metadata.CheckOptions{Times: true, Sharing: true, Reserved: []uint32{0}})
	must(g, err)
	if len(report.Problems) > 0 {
		g.Errorf("what the kernel left: %v", report.Problems)
	}
	tool(g, "thin_check", g.meta)
}

// readLive reads what device 5 maps while it is in use.
func (g guest) readLive() {
	g.dmsetup("message", "pool", "0", "reserve_metadata_snap")
	r, err := metadata.Open(open(g, g.meta))
	must(g, err)
	held, err := r.Snapshot()
	must(g, err)
	var runs []metadata.Run
	for run, err := range held.Mappings(5) {
		must(g, err)
		if run.Data >= firstFree {
			run.Data = firstFree // which of the free ones is the kernel's choice
		}
		runs = append(runs, run)
	}
	want := []metadata.Run{
		{Origin: 10, Data: 800, Length: 24, Time: 1}, {Origin: 34, Data: 100, Length: 1},
		{Origin: 35, Data: firstFree, Length: 1, Time: 1}, {Origin: 36, Data: 102, Length: 4},
		{Origin: 50, Data: firstFree, Length: 1, Time: 1},
	}
	if diff := cmp.Diff(want, runs); diff != "" {
		g.Errorf("the live mappings (-want +got):\n%s", diff)
	}
	g.dmsetup("message", "pool", "0", "release_metadata_snap")
}

// inUse is how many data blocks the pool says are in use.
func (g guest) inUse() (used int) {
	fields := strings.Fields(g.dmsetup("status", "pool"))
	if _, err := fmt.Sscanf(fields[5], "%d/", &used); err != nil {
		g.Fatalf("status %q: %v", fields, err)
	}
	return used
}
