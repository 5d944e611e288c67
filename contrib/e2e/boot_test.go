// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// stepVariable names, in the guest, the boot that this is.
const stepVariable = "DISKHOOK_E2E_BOOT"

// How a boot ends: the exit statuses of contrib/testguest/run.
const (
	inOrder  = 0
	powerCut = 137
)

// boot is one boot of a host and what is done during it. A boot that ends by a
// power cut calls machine.cutPower last.
type boot struct {
	name string
	do   func(machine)
	ends int
}

// host is a machine to boot: what is installed on it, and its boots in order.
type host struct {
	install string // make target
	images  []chain
	boots   []boot
}

// bootTimeout ends a boot that hangs; the program in the guest ends a little
// earlier by itself, and says where it was.
const bootTimeout, stepTimeout = "3300", "54m"

// pvSize is that of the disk for the volume group, in bytes.
const pvSize = 640 << 20

// run boots the host as often as it says, or does in the guest what is this
// boot's part.
func (h host) run(t *testing.T) {
	if step := os.Getenv(stepVariable); step != "" {
		h.inGuest(t, step)
		return
	}
	t.Parallel()
	work := t.TempDir()
	payload := filepath.Join(work, "payload")
	h.pack(t, payload)
	disk := filepath.Join(work, "disk")
	usedDisk(t, disk)
	for _, b := range h.boots {
		if err := b.run(t.Context(), t, "--payload", payload, "--disk", disk, "--state", filepath.Join(work, "root")); err != nil {
			t.Fatal(err)
		}
		// The images are on the host's root disk now.
		if err := os.RemoveAll(filepath.Join(payload, "images")); err != nil {
			t.Fatal(err)
		}
	}
}

// run boots a guest with what options say and waits for its end, which has to be
// the one that is expected. If it is not, what it prints is told, and the error
// repeats what failed, as that is easily lost in the rest.
func (b boot) run(ctx context.Context, t *testing.T, options ...string) error {
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	// One processor each: guests run beside one another, and emulated processors
	// that wait for one another cost a fifth more than the work.
	args := append(options, "--timeout", bootTimeout, "--smp", "1",
		"--", "env", stepVariable+"="+b.name, "./e2e.test", "-test.v", "-test.timeout", stepTimeout, "-test.run", "^"+t.Name()+"$")
	guest := exec.CommandContext(ctx, "../testguest/run", args...)
	guest.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // no guest outlives this test
	guest.Cancel = func() error { return guest.Process.Signal(syscall.SIGTERM) }
	var out bytes.Buffer
	guest.Stdout = &out
	if testing.Verbose() {
		guest.Stdout = io.MultiWriter(&out, os.Stdout)
	}
	guest.Stderr = guest.Stdout
	began := time.Now()
	err := guest.Run()
	t.Logf("boot %s: %v", b.name, time.Since(began).Round(time.Second))
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		return err
	}
	if got := guest.ProcessState.ExitCode(); got != b.ends {
		if !testing.Verbose() {
			t.Logf("%s", &out)
		}
		return fmt.Errorf("boot %s: status %d, want %d:\n%s", b.name, got, b.ends, complaints(out.String()))
	}
	return nil
}

// complaint is a line in which a test in a guest says that or why it failed.
var complaint = regexp.MustCompile(`(?m)^ *(?:--- FAIL: .*|panic: .*|[a-z_]+_test\.go:\d+: .*)$`)

// complaints are those lines of what a guest has printed, a few hundred characters
// of each.
func complaints(output string) string {
	const longest = 600
	var b strings.Builder
	for _, line := range complaint.FindAllString(output, -1) {
		if len(line) > longest {
			line = line[:longest] + "…"
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

func (h host) inGuest(t *testing.T, step string) {
	t.Cleanup(func() { explain(t) })
	for _, b := range h.boots {
		if b.name == step {
			b.do(machine{t})
			return
		}
	}
	t.Fatalf("no boot is called %q", step)
}

// explain shows what the guest has logged, of a boot that failed: its disk goes
// with the test.
func explain(t *testing.T) {
	if !t.Failed() {
		return
	}
	for _, log := range [][]string{
		{"journalctl", "-b", "-q", "--no-pager", "-o", "short-monotonic", "-n", "200"},
		{"sh", "-c", "tail -n 20 /var/log/libvirt/qemu/*.log /run/diskhook/status/*/*.log 2>/dev/null || true"},
		{"systemctl", "--no-pager", "--plain", "--failed"},
		{"lvs", "-a", "-o", "lv_name,lv_attr,lv_size,data_percent,lv_tags"},
	} {
		out, err := exec.CommandContext(context.WithoutCancel(t.Context()), log[0], log[1:]...).CombinedOutput()
		t.Logf("%q: %v\n%s", log, err, out)
	}
}

// pack makes the payload: the programs and the images.
func (h host) pack(t *testing.T, payload string) {
	programs, err := programs[h.install]()
	if err != nil {
		t.Fatal(err)
	}
	command(t, "cp", "-al", programs, payload)
	for _, c := range h.images {
		c.create(t, filepath.Join(payload, "images"))
	}
}

// programs are directories, by make target, with what that lays out, this
// program, and a diskhook with failpoints. Each is built once for all hosts.
var programs = map[string]func() (string, error){
	"install":      sync.OnceValues(func() (string, error) { return build("install") }),
	"install-vdsm": sync.OnceValues(func() (string, error) { return build("install-vdsm") }),
}

// built is where they are.
var built string

func TestMain(m *testing.M) {
	if os.Getenv(stepVariable) != "" {
		os.Exit(m.Run()) // in the guest
	}
	var err error
	if built, err = os.MkdirTemp("", "diskhook-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(built)
	os.Exit(code)
}

func build(target string) (string, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(built, target)
	for _, argv := range [][]string{
		{"mkdir", dir},
		// Built apart, as another tier may be building at the same time.
		{"make", "--no-print-directory", "-C", root, target, "out=" + dir + ".out", "DESTDIR=" + filepath.Join(dir, "root")},
		{"env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", "libvirt_dlopen,testroot", "-o", filepath.Join(dir, "diskhook.failpoints"), "../../cmd/diskhook"},
		{"strip", "-o", filepath.Join(dir, "e2e.test"), self}, // each boot of a guest unpacks it
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%q: %w\n%s", argv, err, out)
		}
	}
	return dir, nil
}

// usedDisk makes a disk whose earlier owner left something on every byte.
func usedDisk(t *testing.T, path string) {
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	old := bytes.Repeat([]byte{0xaa}, 4<<20)
	for range pvSize / len(old) {
		if _, err := f.Write(old); err != nil {
			t.Fatal(err)
		}
	}
}

// command runs a program on either side and returns what it prints.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// chain is an image of three qcow2 layers: base ← middle ← top. Each layer has
// data of its own, covers some of the one below with other data and some with
// zeros. seed tells images apart; data is the size in MiB of what base holds.
type chain struct {
	name string
	seed int
	data int
	size int64 // virtual, in bytes
}

// oddSize is no whole number of extents, of MiB or of 4 KiB sectors, so that a
// copy on a volume has a tail.
const oddSize = 24<<20 + 3*512

func (c chain) create(t *testing.T, dir string) {
	t.Helper()
	dir = filepath.Join(dir, c.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	size := c.size
	if size == 0 {
		size = oddSize
	}
	last := min(23, size>>20-1) // the last MiB that fits
	lower := ""
	for _, layer := range []struct{ file, writes string }{
		{"base.qcow2", fmt.Sprintf("write -P %d 0 %dM", c.seed, max(2, c.data))},
		{"middle.qcow2", fmt.Sprintf("write -P %d 512k 512k; write -z 1M 128k", c.seed+1)},
		{"top.qcow2", fmt.Sprintf("write -P %d 900k 200k; write -P %d %dM 1M; write -z 64k 64k", c.seed+2, c.seed+3, last)},
	} {
		path := filepath.Join(dir, layer.file)
		args := []string{"create", "-q", "-f", "qcow2"}
		if lower != "" {
			args = append(args, "-b", lower, "-F", "qcow2")
		}
		command(t, "qemu-img", append(args, path, fmt.Sprint(size))...)
		io := []string{"-f", "qcow2"}
		for _, write := range bytes.Split([]byte(layer.writes), []byte("; ")) {
			io = append(io, "-c", string(write))
		}
		command(t, "qemu-io", append(io, path)...)
		lower = layer.file // relative, as VDSM writes it
	}
}
