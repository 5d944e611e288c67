// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/imagecheck"
	"diskhook/storage/transfer"
)

// tool runs a real program; a machine without it fails the test.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s(install qemu-utils and util-linux)", command.Quote(append([]string{name}, args...)), err, out)
	}
	return strings.TrimSpace(string(out))
}

// step is one write to a layer: pattern, or zeros that hide what is below.
type step struct{ off, n, pattern int64 }

// layer describes one image to make; layers are listed base first. The format
// may have options of `qemu-img create -o` behind a colon.
type layer struct {
	format string
	size   int64
	steps  []step
}

// build makes the chain in dir and returns it top first, with its content as
// computed here: a layer shows what is below up to that layer's end, zeros
// beyond it, and its own writes on top.
func build(t testing.TB, dir string, layers []layer) ([]imagecheck.Layer, []byte) {
	t.Helper()
	var chain []imagecheck.Layer
	var content []byte
	for i, l := range layers {
		format, options, _ := strings.Cut(l.format, ":")
		path := filepath.Join(dir, fmt.Sprintf("layer%d.%s", i, format))
		args := []string{"create", "-q", "-f", format}
		if options != "" {
			args = append(args, "-o", options)
		}
		if len(chain) > 0 {
			args = append(args, "-b", chain[0].Path, "-F", chain[0].Format)
		}
		tool(t, "qemu-img", append(args, path, fmt.Sprint(l.size))...)
		if pad := l.size - int64(len(content)); pad > 0 {
			content = append(content, make([]byte, pad)...)
		}
		content = bytes.Clone(content[:l.size])
		io := []string{"-f", format}
		for _, s := range l.steps {
			io = append(io, "-c", fmt.Sprintf("write -P %d %d %d", s.pattern, s.off, s.n))
			if s.pattern == 0 {
				io[len(io)-1] = fmt.Sprintf("write -z %d %d", s.off, s.n)
			}
			copy(content[s.off:s.off+s.n], bytes.Repeat([]byte{byte(s.pattern)}, int(s.n)))
		}
		if len(l.steps) > 0 {
			tool(t, "qemu-io", append(io, path)...)
		}
		chain = append([]imagecheck.Layer{{Path: path, Format: format}}, chain...)
	}
	return chain, content
}

// scatter makes n random writes, every fourth of zeros, on sectors.
func scatter(r *rand.Rand, size int64, n int) []step {
	var steps []step
	for i := range n {
		off := r.Int64N(size/512) * 512
		length := min(size-off, (1+r.Int64N(300))*512)
		pattern := 1 + r.Int64N(255)
		if i%4 == 3 {
			pattern = 0
		}
		steps = append(steps, step{off, length, pattern})
	}
	return steps
}

// inspect is what callers do before they copy.
func inspect(t testing.TB, chain []imagecheck.Layer) transfer.Source {
	t.Helper()
	info, err := imagecheck.Chain(t.Context(), chain, filepath.EvalSymlinks)
	if err != nil {
		t.Fatal(err)
	}
	return transfer.Source{Layers: chain, Size: info.VirtualSize}
}

const old = 0xAA // what a target held before

func oldBytes(n int64) []byte { return bytes.Repeat([]byte{old}, int(n)) }

// fillFile makes a file of old bytes.
func fillFile(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, oldBytes(size), 0o600); err != nil {
		t.Fatal(err)
	}
}

// loop makes a block device of a file, with options of losetup(8).
func loop(t testing.TB, file string, options ...string) string {
	t.Helper()
	if os.Getenv("SKIP_LOOP") == "1" {
		t.Skip("SKIP_LOOP=1")
	}
	out, err := exec.Command("losetup", append(options, "--find", "--show", file)...).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s (needs root and loop devices; SKIP_LOOP=1 leaves this out)", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() })
	return dev
}

// chains are the shapes that copies meet. Sizes are sectors, not clusters.
func chains(seed uint64) map[string][]layer {
	r := rand.New(rand.NewPCG(seed, 1))
	const mib = 1 << 20
	random := func(format string, size int64) layer { return layer{format, size, scatter(r, size, 12)} }
	return map[string][]layer{
		"raw":                      {random("raw", 3*mib+512)},
		"qcow2":                    {random("qcow2", 3*mib+1536)},
		"empty qcow2":              {{format: "qcow2", size: 2*mib + 512}},
		"overlay":                  {random("raw", 2*mib+512), random("qcow2", 2*mib+512)},
		"overlay larger":           {random("qcow2", 1*mib+512), random("qcow2", 3*mib+2560)},
		"overlay smaller":          {random("raw", 3*mib), random("qcow2", 1*mib+512)},
		"three":                    {random("raw", 2*mib), random("qcow2", 1*mib+512), random("qcow2", 3*mib+512)},
		"hidden by an empty layer": {random("raw", 2*mib), {format: "qcow2", size: 1*mib + 512}, {format: "qcow2", size: 2 * mib}},
	}
}

// expect compares the target's bytes with what was computed.
func expect(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("byte %d is %#x, want %#x", i, got[i], want[i])
		}
	}
}

// equal asks QEMU itself, which reads the chain by its headers.
func equal(t *testing.T, chain []imagecheck.Layer, path string, size int64) {
	t.Helper()
	exact := path + ".exact"
	tool(t, "sh", "-c", `head -c "$1" "$2" >"$3"`, "sh", fmt.Sprint(size), path, exact)
	tool(t, "qemu-img", "compare", "-f", chain[0].Format, "-F", "raw", chain[0].Path, exact)
}

func fingerprints(t *testing.T, chain []imagecheck.Layer) string {
	t.Helper()
	var all []string
	for _, l := range chain {
		all = append(all, tool(t, "sha256sum", l.Path))
	}
	return strings.Join(all, "\n")
}

func preallocate(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		t.Fatal(err)
	}
}

// allocated is how many bytes of its file system a file takes.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}
