// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/imagecheck"
)

// No image outgrows what was reserved for it, and little more is.
func TestFullSize(t *testing.T) {
	for _, virtual := range []int64{512, 1 << 20, 3<<20 + 512, 1 << 30, 100 << 30, 1<<40 + 1<<16, 64 << 40} {
		out, err := exec.Command("qemu-img", "measure", "-O", "qcow2", "--output=json", "--size", strconv.FormatInt(virtual, 10)).Output()
		if err != nil {
			t.Fatal(err)
		}
		var measured struct {
			Full int64 `json:"fully-allocated"`
		}
		if err := json.Unmarshal(out, &measured); err != nil {
			t.Fatal(err)
		}
		if got := FullSize(virtual); got < measured.Full || got > measured.Full+measured.Full/1000+2<<20 {
			t.Errorf("FullSize(%d) = %d, qemu-img says %d", virtual, got, measured.Full)
		}
	}
}

func runs(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// counting counts the pieces that are read in, and stops after some.
type counting struct {
	command.System
	reads, most int
}

func (c *counting) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	if slices.Contains(cmd.Args, "-C") {
		if c.reads == c.most {
			return command.Result{}, errors.New("killed")
		}
		c.reads++
	}
	return c.System.Run(ctx, cmd)
}

// What was read in is there after an interruption, and is not read again; what
// the image has of its own stays; what nobody has reads zero.
func TestFlatten(t *testing.T) {
	const size = 200<<20 + 512
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	base, top := imagecheck.Layer{Path: at("base.raw"), Format: "raw"}, imagecheck.Layer{Path: at("top.qcow2"), Format: "qcow2"}
	runs(t, "qemu-img", "create", "-q", "-f", "raw", base.Path, strconv.Itoa(size))
	runs(t, "qemu-io", "-f", "raw", "-c", "write -q -P 1 60M 10M", "-c", "write -q -P 2 209715200 512", base.Path)
	q := QemuImg{Run: command.System{}}
	if err := os.WriteFile(top.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := q.Format(t.Context(), top.Path, size, base); err != nil {
		t.Fatal(err)
	}
	runs(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 3 66M 1M", top.Path)
	runs(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", top.Path, at("want.raw"))

	limited := flatten{q: &q, o: FlattenOptions{Chain: []imagecheck.Layer{top, base}, Size: size, Rate: 8 << 20}}
	if err := limited.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := limited.moves(limited.chunks(limited.wanted())); n < 9<<20+512 || n > 10<<20 {
		t.Errorf("%d bytes count for the rate", n) // no zeros, nor what the image has itself
	}

	runner := &counting{most: 2}
	q.Run = runner
	var last int64
	o := FlattenOptions{Chain: []imagecheck.Layer{top, base}, Size: size, Progress: func(done, total int64) {
		if done < last || total != size {
			t.Errorf("%d of %d after %d", done, total, last)
		}
		last = done
	}}
	if err := q.Flatten(t.Context(), o); err == nil || last != 2*flattenChunk {
		t.Fatalf("interrupted at %d: %v", last, err)
	}
	runner.most, last = 100, 0
	if err := q.Flatten(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if runner.reads != 4 || last != size {
		t.Errorf("%d reads for 4 pieces, told of %d bytes", runner.reads, last)
	}
	if err := q.RemoveBacking(t.Context(), top.Path); err != nil {
		t.Fatal(err)
	}
	runs(t, "qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", top.Path, at("want.raw"))
	if st, err := os.Stat(top.Path); err != nil || st.Size() > 14<<20 {
		t.Errorf("zeros were written: %v, %v", st.Size(), err)
	}
	if err := q.SetBacking(t.Context(), top.Path, base); err != nil {
		t.Fatal(err)
	}
	info, err := exec.Command("qemu-img", "info", "-f", "qcow2", top.Path).Output()
	if err != nil || !strings.Contains(string(info), "backing file: "+base.Path) {
		t.Errorf("%s, %v", info, err)
	}
}

func TestParseAllocated(t *testing.T) {
	chunks := []chunk{{0, 64}, {64, 36}}
	for text, want := range map[string][]int64{
		"qemu-io> 64/64 bytes allocated at offset 0 bytes\nqemu-io> 0/36 bytes allocated at offset 64 bytes\nqemu-io> ": {64, 0},
		"64/64 bytes allocated at offset 0 bytes\n36/36 bytes allocated at offset 64 bytes\n":                           {64, 36},
		"qemu-io> 64/64 bytes allocated at offset 0 bytes\n":                                                            nil,
		"qemu-io> 64/64 bytes allocated at offset 0 bytes\nqemu-io> 9/37 bytes allocated at offset 64 bytes\n":          nil,
		"": nil,
	} {
		got, err := parseAllocated(text, chunks)
		if !slices.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}
