// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/imagecheck"
	"diskhook/storage/transfer"
)

// BenchmarkFill fills a new, zeroed block device from a chain of three qcow2
// images (2 GiB virtual, 512 MiB of data) in the two ways there are: in a
// single pass as Copy does, and by way of a temporary raw file that dd then
// copies without its zeros, which keeps a thin volume thin as well. Both end
// with everything on the disk, both begin with a cold source. It reports the
// seconds of each and their ratio:
//
//	go test ./storage/transfer -run '^$' -bench Fill -benchtime 3x
//
// It needs root for loop devices. TMPDIR says which disk is measured.
func BenchmarkFill(b *testing.B) {
	dir := b.TempDir()
	source := benchmarkSource(b, dir)
	engine := transfer.Engine{Run: command.System{}}
	var single, twoSteps time.Duration
	for range b.N {
		single += timeFill(b, dir, source, func(dev string) error {
			_, err := engine.Copy(b.Context(), source, transfer.Target{Path: dev, Block: true, Zeroed: true, Size: source.Size}, transfer.Options{})
			return err
		})
		twoSteps += timeFill(b, dir, source, func(dev string) error { return fileThenDD(source, dir, dev) })
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op") // of both together, which means nothing
	b.ReportMetric(single.Seconds()/n, "single-pass-s")
	b.ReportMetric(twoSteps.Seconds()/n, "file-then-dd-s")
	b.ReportMetric(twoSteps.Seconds()/single.Seconds(), "ratio")
}

func benchmarkSource(b *testing.B, dir string) transfer.Source {
	b.Helper()
	const virtual, pieces, piece = 2 << 30, 64, 8 << 20
	r := rand.New(rand.NewPCG(1, 2))
	random := filepath.Join(dir, "random")
	tool(b, "dd", "if=/dev/urandom", "of="+random, "bs=1M", "count=8", "status=none")
	var chain []imagecheck.Layer
	places := r.Perm(virtual / piece)[:pieces]
	for i := range 3 {
		path := filepath.Join(dir, fmt.Sprintf("layer%d.qcow2", i))
		args := []string{"create", "-q", "-f", "qcow2"}
		if i > 0 {
			args = append(args, "-b", chain[0].Path, "-F", "qcow2")
		}
		tool(b, "qemu-img", append(args, path, fmt.Sprint(virtual))...)
		io := []string{"-f", "qcow2"}
		for _, at := range places[i*pieces/3 : (i+1)*pieces/3] {
			io = append(io, "-c", fmt.Sprintf("write -q -s %s %d %d", random, at*piece, piece))
		}
		tool(b, "qemu-io", append(io, path)...)
		chain = append([]imagecheck.Layer{{Path: path, Format: "qcow2"}}, chain...)
	}
	return inspect(b, chain)
}

// timeFill gives fill a new device over a sparse file, and a source that is
// not cached.
func timeFill(b *testing.B, dir string, source transfer.Source, fill func(dev string) error) time.Duration {
	b.Helper()
	file := filepath.Join(dir, "device")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	defer os.Remove(file)
	if err := os.Truncate(file, source.Size); err != nil {
		b.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", file).CombinedOutput()
	if err != nil {
		b.Fatalf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	defer func() { _ = exec.Command("losetup", "--detach", dev).Run() }()
	for _, l := range source.Layers {
		dropCache(b, l.Path)
	}
	began := time.Now()
	if err := fill(dev); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

func dropCache(b *testing.B, path string) {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		b.Fatal(err)
	}
}

// fileThenDD is the way that oVirt's localdisk hook takes for thin volumes.
func fileThenDD(source transfer.Source, dir, dev string) error {
	temp := filepath.Join(dir, "temp.raw")
	defer os.Remove(temp)
	for _, argv := range [][]string{
		{"qemu-img", "convert", "-t", "none", "-T", "none", "-f", "qcow2", "-O", "raw", source.Layers[0].Path, temp},
		{"dd", "if=" + temp, "of=" + dev, "bs=1M", "iflag=direct", "oflag=direct", "conv=sparse,notrunc,fsync", "status=none"},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", argv[0], err, out)
		}
	}
	return nil
}
