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
	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/qemuimg"
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

// layer describes one image to make; layers are listed base first.
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
		path := filepath.Join(dir, fmt.Sprintf("layer%d.%s", i, l.format))
		args := []string{"create", "-q", "-f", l.format}
		if len(chain) > 0 {
			args = append(args, "-b", chain[0].Path, "-F", chain[0].Format)
		}
		tool(t, "qemu-img", append(args, path, fmt.Sprint(l.size))...)
		if pad := l.size - int64(len(content)); pad > 0 {
			content = append(content, make([]byte, pad)...)
		}
		content = bytes.Clone(content[:l.size])
		io := []string{"-f", l.format}
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
		chain = append([]imagecheck.Layer{{Path: path, Format: l.format}}, chain...)
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

// loop makes a block device of a file.
func loop(t testing.TB, file string) string {
	t.Helper()
	if os.Getenv("SKIP_LOOP") == "1" {
		t.Skip("SKIP_LOOP=1")
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
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

// After Copy the target reads as the source, reads zero up to its size, and
// is as before beyond: checked byte by byte and by qemu-img compare.
func TestCopy(t *testing.T) {
	for name, layers := range chains(7) {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of the time is waiting for flushes
			chain, content := build(t, t.TempDir(), layers)
			source := inspect(t, chain)
			if source.Size != int64(len(content)) {
				t.Fatalf("virtual size %d, made %d", source.Size, len(content))
			}
			before := fingerprints(t, chain)
			for kind, prepare := range targets {
				t.Run(kind, func(t *testing.T) {
					path := filepath.Join(t.TempDir(), "target")
					target, after := prepare(t, path, source.Size+rest)
					copyAndVerify(t, source, target)
					want := append(bytes.Clone(content), make([]byte, rest)...)
					expect(t, target.Path, append(want, after...))
					equal(t, chain, path, target.Size)
				})
			}
			if after := fingerprints(t, chain); before != after {
				t.Errorf("the source was written to")
			}
		})
	}
}

// rest is the tail that targets have behind the source's end, beyond is what
// lies behind that and is not the copy's.
const rest, beyond = 1<<20 + 512, 64 << 10

// targets are the kinds of targets there are. Each makes one of size bytes at
// path and says what has to be found behind them afterwards.
var targets = map[string]func(t *testing.T, path string, size int64) (transfer.Target, []byte){
	"new file": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		return transfer.Target{Path: path, Size: size}, nil
	},
	"preallocated file": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		preallocate(t, path, size+beyond)
		return transfer.Target{Path: path, Size: size, Zeroed: true}, make([]byte, beyond)
	},
	"old file": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		fillFile(t, path, size+beyond)
		return transfer.Target{Path: path, Size: size}, oldBytes(beyond)
	},
	"old file promised to be zero": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		fillFile(t, path, size+beyond)
		return transfer.Target{Path: path, Size: size, Zeroed: true}, oldBytes(beyond)
	},
	"old device": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		fillFile(t, path, size+beyond)
		return transfer.Target{Path: loop(t, path), Block: true, Size: size}, oldBytes(beyond)
	},
	"zeroed device": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		fillFile(t, path, size+beyond)
		tool(t, "fallocate", "--zero-range", "--length", fmt.Sprint(size), path)
		return transfer.Target{Path: loop(t, path), Block: true, Size: size, Zeroed: true}, oldBytes(beyond)
	},
}

// copyAndVerify copies and holds the progress to its promise.
func copyAndVerify(t *testing.T, source transfer.Source, target transfer.Target) {
	t.Helper()
	var last int64
	engine := transfer.Engine{Run: command.System{}}
	err := engine.Copy(t.Context(), source, target, transfer.Options{Verify: true, Progress: func(done, total int64) {
		if total != source.Size || done < last {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	}})
	if err != nil {
		t.Fatal(err)
	}
	if last != source.Size {
		t.Errorf("progress ended at %d of %d", last, source.Size)
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

// A raw file may end within a sector; QEMU shows the rest of that as zeros.
func TestRawFileEndsWithinASector(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int{1, 511, 513, 1<<20 + 100} {
		path := filepath.Join(dir, fmt.Sprint("source", size))
		content := bytes.Repeat([]byte{7}, size)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		source := inspect(t, []imagecheck.Layer{{Path: path, Format: "raw"}})
		for _, size := range []int64{source.Size, source.Size + 4096} {
			target := transfer.Target{Path: filepath.Join(dir, fmt.Sprint("target", size)), Size: size}
			fillFile(t, target.Path, size)
			if err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{}); err != nil {
				t.Fatal(err)
			}
			expect(t, target.Path, append(bytes.Clone(content), make([]byte, int(size)-len(content))...))
		}
	}
}

// A target that somebody replaces is noticed: what is flushed would not be
// what was written.
func TestReplacedTarget(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"raw", 4096, nil}})
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 4096}
	fillFile(t, target.Path, 4096)
	fake := &commandtest.Runner{T: t, Answers: []commandtest.Answer{
		{Prefix: "qemu-img --version", Stdout: "qemu-img version 7.2.22\n"},
		{Prefix: "qemu-img convert", Do: func(command.Cmd) {
			fillFile(t, target.Path+".new", 4096)
			if err := os.Rename(target.Path+".new", target.Path); err != nil {
				t.Error(err)
			}
		}},
	}}
	if err := (&transfer.Engine{Run: fake}).Copy(t.Context(), inspect(t, chain), target, transfer.Options{}); failure.KindOf(err) != failure.Conflict {
		t.Errorf("got %v", err)
	}
}

// A promise of zeros keeps a thin target thin and a preallocated one
// allocated.
func TestZeroedTargetKeepsItsAllocation(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"qcow2", 64 << 20, []step{{0, 1 << 20, 1}, {32 << 20, 1 << 20, 2}}}})
	source := inspect(t, chain)
	engine := transfer.Engine{Run: command.System{}}
	thin, full := filepath.Join(dir, "thin"), filepath.Join(dir, "full")
	preallocate(t, full, source.Size)
	for path, size := range map[string][2]int64{thin: {2 << 20, 4 << 20}, full: {64 << 20, 65 << 20}} {
		if err := engine.Copy(t.Context(), source, transfer.Target{Path: path, Size: source.Size, Zeroed: true}, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		if n := allocated(t, path); n < size[0] || n > size[1] {
			t.Errorf("%s takes %d bytes, want %v", filepath.Base(path), n, size)
		}
	}
}

// A device that was promised to be zero and is not: where it is noticed the
// copy fails, and says what to do.
func TestBrokenPromise(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"qcow2", 1 << 20, nil}})
	source := inspect(t, chain)
	fillFile(t, filepath.Join(dir, "device"), 2<<20)
	target := transfer.Target{Path: loop(t, filepath.Join(dir, "device")), Block: true, Zeroed: true, Size: 2 << 20}
	err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{})
	if failure.KindOf(err) != failure.Precondition || !strings.Contains(err.Error(), "has data at byte 1048576") || !strings.Contains(failure.HintOf(err), "lvchange --zero y") {
		t.Errorf("got %v", err)
	}
}

// What is refused is refused before any program runs, and stays as it was.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	fillFile(t, at("file"), 4096)
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", at("link")); err != nil {
		t.Fatal(err)
	}
	source := transfer.Source{Layers: []imagecheck.Layer{{Path: at("file"), Format: "raw"}}, Size: 4096}
	for name, c := range map[string]struct {
		source transfer.Source
		target transfer.Target
		kind   *failure.Kind
	}{
		"no source":           {transfer.Source{Size: 512}, transfer.Target{Path: at("new"), Size: 512}, failure.Usage},
		"no size":             {transfer.Source{Layers: source.Layers}, transfer.Target{Path: at("new"), Size: 512}, failure.Usage},
		"half a sector":       {transfer.Source{Layers: source.Layers, Size: 700}, transfer.Target{Path: at("new"), Size: 1024}, failure.Usage},
		"target too small":    {source, transfer.Target{Path: at("new"), Size: 2048}, failure.Precondition},
		"relative target":     {source, transfer.Target{Path: "new", Size: 4096}, failure.Usage},
		"file too short":      {source, transfer.Target{Path: at("file"), Size: 8192}, failure.Precondition},
		"file for a device":   {source, transfer.Target{Path: at("file"), Block: true, Size: 4096}, failure.Precondition},
		"missing device":      {source, transfer.Target{Path: at("new"), Block: true, Size: 4096}, nil},
		"char device":         {source, transfer.Target{Path: "/dev/zero", Block: true, Size: 4096}, failure.Precondition},
		"char device as file": {source, transfer.Target{Path: "/dev/zero", Size: 4096}, failure.Precondition},
		"FIFO":                {source, transfer.Target{Path: at("fifo"), Size: 4096}, failure.Precondition},
		"link for a file":     {source, transfer.Target{Path: at("link"), Size: 4096}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			engine := transfer.Engine{Run: &commandtest.Runner{T: t}}
			err := engine.Copy(t.Context(), c.source, c.target, transfer.Options{})
			if err == nil || failure.KindOf(err) != c.kind {
				t.Errorf("got %v", err)
			}
			if _, err := os.Lstat(at("new")); err == nil {
				t.Error("something was made")
			}
		})
	}
	expect(t, at("file"), oldBytes(4096))
}

// The command lines, as a dry run shows them and as they are run.
func TestExplain(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"raw", 1 << 20, nil}, {"qcow2", 1 << 20, nil}})
	source := inspect(t, chain)
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 2 << 20}
	fillFile(t, target.Path, target.Size)
	for zeroed, flag := range map[bool]string{true: " --target-is-zero", false: ""} {
		target.Zeroed = zeroed
		explained := (&transfer.Engine{}).Explain(source, target)
		want := []string{
			`qemu-img convert -p -t none -T none -n` + flag + ` -O raw -- 'json:{"driver":"qcow2","file":{"driver":"file","filename":"` + chain[0].Path +
				`"},"backing":{"driver":"raw","file":{"driver":"file","filename":"` + chain[1].Path +
				`"}}}' 'json:{"driver":"raw","size":1048576,"file":{"driver":"file","filename":"` + target.Path + `"}}'`,
		}
		if !zeroed {
			want = append(want, "# zero 1048576 bytes at 1048576 of "+target.Path)
		}
		want = append(want, "# flush "+target.Path)
		if got := strings.Join(explained, "\n"); got != strings.Join(want, "\n") {
			t.Errorf("explained:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
		}
		fake := &commandtest.Runner{T: t, Answers: []commandtest.Answer{
			{Prefix: "qemu-img --version", Stdout: "qemu-img version 7.2.22\n"}, {Prefix: "qemu-img convert"},
		}}
		if zeroed {
			continue // a file of old bytes is not believed
		}
		if err := (&transfer.Engine{Run: fake}).Copy(t.Context(), source, target, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		if got := fake.Lines(); len(got) != 2 || got[1] != explained[0] {
			t.Errorf("run:\n%s\nexplained:\n%s", strings.Join(got, "\n"), explained[0])
		}
	}
}

// A verified copy that differs is a failure.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"qcow2", 1 << 20, []step{{4096, 512, 3}}}})
	source := inspect(t, chain)
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 2 << 20}
	engine := transfer.Engine{Run: command.System{}}
	if err := engine.Copy(t.Context(), source, target, transfer.Options{Verify: true}); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{4096, 2<<20 - 512} {
		tool(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P 9 %d 512", off), target.Path)
		if err := engine.Verify(t.Context(), source, target, nil); failure.KindOf(err) != failure.Problems {
			t.Errorf("byte %d changed: %v", off, err)
		}
		tool(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P %d %d 512", 3*(1-off/(1<<20)), off), target.Path)
	}
}

// What is read is what was inspected, whatever the name means by then.
func TestCopyThroughDescriptors(t *testing.T) {
	dir := t.TempDir()
	chain, content := build(t, dir, []layer{{"raw", 1 << 20, []step{{0, 512, 5}}}, {"qcow2", 1 << 20, []step{{4096, 512, 6}}}})
	opened, err := imagecheck.Checker{Allowed: filepath.EvalSymlinks}.Open(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	for _, l := range chain {
		if err := os.Remove(l.Path); err != nil {
			t.Fatal(err)
		}
	}
	evil := qemuimg.CreateOptions{Path: chain[0].Path, Format: "qcow2", Size: 1 << 20}
	if err := (&qemuimg.QemuImg{Run: command.System{}}).Create(t.Context(), evil); err != nil {
		t.Fatal(err)
	}
	source := transfer.Source{Layers: chain, Size: opened.VirtualSize, Files: opened.Files}
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: opened.VirtualSize}
	if err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	expect(t, target.Path, content)
}
