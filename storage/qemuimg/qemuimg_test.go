// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// testdata is what the real program printed; the version is in the name.
func testdata(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "testdata", "qemuimg", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]Version{
		testdata(t, "version-7.2.22.txt"):                              {7, 2, 22},
		"qemu-img version 6.2.0 (qemu-kvm-6.2.0-53.module+el8.10.0)\n": {6, 2, 0},
		"qemu-img version 9.0.50 (v9.0.0-1234-gabcdef)\n":              {9, 0, 50},
		"qemu-img version 10.0-rc1\n":                                  {10, 0, 0},
		"qemu-img version 10.1.0-rc2 (x)\n":                            {10, 1, 0},
		"qemu-img version 8.1\n":                                       {8, 1, 0},
		"qemu-img version \n":                                          {},
		"":                                                             {},
		"qemu-img version seven.two\n":                                 {},
	} {
		got, err := parseVersion(text)
		if got != want && err == nil || (err != nil) != (want == Version{}) {
			t.Errorf("%q: got %v, %v; want %v", text, got, err, want)
		}
	}
	for v, want := range map[Version][2]bool{
		{4, 2, 0}: {false, false}, {5, 0, 0}: {true, false}, {5, 1, 9}: {true, false}, {5, 2, 0}: {true, true}, {10, 0, 0}: {true, true},
	} {
		if got := [2]bool{v.targetIsZero(), v.rateLimit()}; got != want {
			t.Errorf("%s: %v, want %v", v, got, want)
		}
	}
}

func TestConvertArgs(t *testing.T) {
	const newest = 99
	raw := func(path string) place {
		return place{Layer: imagecheck.Layer{Path: path, Format: "raw"}, direct: true}
	}
	qcow := func(path string) place {
		return place{Layer: imagecheck.Layer{Path: path, Format: "qcow2"}, direct: true}
	}
	block := func(p place) place { p.block = true; return p }
	buffered := func(p place) place { p.direct = false; return p }
	for name, c := range map[string]struct {
		o      ConvertOptions
		major  int
		chain  []place
		target place
		want   string
		notes  string
		err    string
	}{
		"new file": {
			o:     ConvertOptions{TargetFormat: "qcow2"},
			chain: []place{raw("/a")}, target: qcow("/new"),
			want: `convert -p -t none -T none -O qcow2 -- 'json:{"driver":"raw","file":{"driver":"file","filename":"/a"}}' /new`,
		},
		"chain of three to a volume": {
			o:      ConvertOptions{TargetFormat: "raw", TargetExists: true, TargetSize: 4096},
			chain:  []place{qcow("/t"), block(qcow("/dev/m")), raw(`/b "ä" <&>`)},
			target: block(raw("/dev/vg/lv")),
			want: `convert -p -t none -T none -n -W -m 16 -O raw -- 'json:{"driver":"qcow2","file":{"driver":"file","filename":"/t"},` +
				`"backing":{"driver":"qcow2","file":{"driver":"host_device","filename":"/dev/m"},` +
				`"backing":{"driver":"raw","file":{"driver":"file","filename":"/b \"ä\" <&>"}}}}' ` +
				`'json:{"driver":"raw","size":4096,"file":{"driver":"host_device","filename":"/dev/vg/lv"}}'`,
		},
		"zeroed, limited": {
			o:      ConvertOptions{TargetFormat: "raw", TargetExists: true, TargetIsZero: true, TargetSize: 512, Rate: 1 << 20},
			chain:  []place{qcow("/t")},
			target: raw("/f"),
			want: `convert -p -t none -T none -n --target-is-zero -W -m 16 -r 1048576 -O raw -- 'json:{"driver":"qcow2","file":{"driver":"file","filename":"/t"},"backing":null}' ` +
				`'json:{"driver":"raw","size":512,"file":{"driver":"file","filename":"/f"}}'`,
		},
		"range": {
			o:      ConvertOptions{TargetFormat: "raw", TargetExists: true, TargetSize: 4096, Offset: 512, Length: 1024, Total: 4096},
			chain:  []place{qcow("/t")},
			target: raw("/f"),
			want: `convert -p -t none -T none -n -W -m 16 -O raw -- 'json:{"driver":"raw","offset":512,"size":1024,"file":{"driver":"qcow2",` +
				`"file":{"driver":"file","filename":"/t"},"backing":null}}' 'json:{"driver":"raw","offset":512,"size":1024,"file":{"driver":"file","filename":"/f"}}'`,
		},
		"range to the end": {
			o:      ConvertOptions{TargetFormat: "raw", TargetExists: true, TargetSize: 4096, Offset: 2048, Length: 2048, Total: 4096},
			chain:  []place{raw("/t")},
			target: raw("/f"),
			want: `convert -p -t none -T none -n -W -m 16 -O raw -- 'json:{"driver":"raw","offset":2048,"file":{"driver":"raw",` +
				`"file":{"driver":"file","filename":"/t"}}}' 'json:{"driver":"raw","offset":2048,"size":2048,"file":{"driver":"file","filename":"/f"}}'`,
		},
		"old program writes zeros": {
			o:      ConvertOptions{TargetFormat: "raw", TargetExists: true, TargetIsZero: true, TargetSize: 512},
			major:  4,
			chain:  []place{raw("/t")},
			target: raw("/f"),
			want: `convert -p -t none -T none -n -W -m 16 -O raw -- 'json:{"driver":"raw","file":{"driver":"file","filename":"/t"}}' ` +
				`'json:{"driver":"raw","size":512,"file":{"driver":"file","filename":"/f"}}'`,
			notes: "qemu-img 4.0.0 has no --target-is-zero: zeros are written",
		},
		"no direct I/O": {
			o:      ConvertOptions{Source: []imagecheck.Layer{{Path: "/t"}}, Target: "/f", TargetFormat: "raw"},
			chain:  []place{qcow("/t"), buffered(raw("/b"))},
			target: buffered(raw("/f")),
			want: `convert -p -t writeback -T writeback -O raw -- 'json:{"driver":"qcow2","file":{"driver":"file","filename":"/t"},` +
				`"backing":{"driver":"raw","file":{"driver":"file","filename":"/b"}}}' /f`,
			notes: "/t: its storage has no direct I/O, it is read through the page cache\n/f: its storage has no direct I/O, it is written through the page cache",
		},
		"old program, limited": {
			o: ConvertOptions{TargetFormat: "raw", Rate: 1}, major: 5, chain: []place{raw("/t")}, target: raw("/f"),
			err: "qemu-img 5.0.0 cannot limit its rate",
		},
		"raw in the middle": {
			o: ConvertOptions{TargetFormat: "raw"}, chain: []place{qcow("/t"), raw("/m"), raw("/b")}, target: raw("/f"),
			err: "/m: a raw image has no backing file",
		},
		"other format": {
			o: ConvertOptions{TargetFormat: "raw"}, chain: []place{{Layer: imagecheck.Layer{Path: "/t", Format: "vmdk"}}}, target: raw("/f"),
			err: `/t: format "vmdk" is not supported`,
		},
		"promise for a new file": {
			o: ConvertOptions{TargetFormat: "raw", TargetIsZero: true}, chain: []place{raw("/t")}, target: raw("/f"),
			err: "needs no promise",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var notes []string
			if c.o.Target == "" {
				c.o.Target = c.target.Path
			}
			c.o.Note = func(s string) { notes = append(notes, s) }
			if c.major == 0 {
				c.major = newest
			}
			args, err := convertArgs(c.o, Version{Major: c.major}, c.chain, c.target)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, command.Quote(args)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(c.notes, strings.Join(notes, "\n")); diff != "" {
				t.Errorf("notes (-want +got)\n%s", diff)
			}
		})
	}
}

// The whole call: version first, limits, identity and inherited descriptors.
func TestConvertCall(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	if err := os.WriteFile(source, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	held, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	var convert command.Cmd
	fake := &commandtest.Runner{T: t, Answers: []commandtest.Answer{
		{Prefix: "qemu-img --version", Stdout: testdata(t, "version-7.2.22.txt")},
		{Prefix: "qemu-img convert", Stdout: testdata(t, "convert-progress-7.2.22.txt"), Do: func(c command.Cmd) { convert = c }},
	}}
	user := &command.Credential{UID: 36, GID: 36}
	q := QemuImg{Run: fake, User: user}
	var last int64
	err = q.Convert(t.Context(), ConvertOptions{
		Source: []imagecheck.Layer{{Path: source, Format: "raw"}}, SourceFiles: []*os.File{held},
		Target: filepath.Join(dir, "new"), TargetFormat: "raw", Locks: []*os.File{lock},
		Total: 64 << 20, Progress: func(done, total int64) { last = done },
	})
	if err != nil {
		t.Fatal(err)
	}
	if convert.User != user || convert.Limits.AddressSpace != 8<<30 || convert.Timeout != 0 {
		t.Errorf("called with %+v", convert)
	}
	if diff := cmp.Diff([]*os.File{lock, held}, convert.Files, cmp.Comparer(func(a, b *os.File) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if line := convert.String(); !strings.Contains(line, `"filename":"/proc/self/fd/4"`) || strings.Contains(line, `"`+source+`"`) {
		t.Errorf("the source is not read through its descriptor: %s", line)
	}
	if last != 64<<20 {
		t.Errorf("progress ended at %d", last)
	}
}

func TestErrorKinds(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	if err := os.WriteFile(source, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	for stderr, kind := range map[string]*failure.Kind{
		"qemu-img: error while writing at byte 4194304: No space left on device":                                                       failure.NoSpace,
		"qemu-img: error while writing at byte 0: Disk quota exceeded":                                                                 failure.NoSpace,
		"qemu-img: Could not open 'disk.qcow2': Failed to get shared \"write\" lock\nIs another process using the image [disk.qcow2]?": failure.Conflict,
		"qemu-img: Could not open '/a': Permission denied":                                                                             failure.Precondition,
		"qemu-img: error while reading at byte 0: Stale file handle":                                                                   failure.Temporary,
		"qemu-img: error while reading at byte 0: Input/output error":                                                                  nil,
	} {
		fake := &commandtest.Runner{T: t, Answers: []commandtest.Answer{
			{Prefix: "qemu-img --version", Stdout: testdata(t, "version-7.2.22.txt")},
			{Prefix: "qemu-img convert", Stderr: stderr, Code: 1},
		}}
		q := QemuImg{Run: fake}
		err := q.Convert(t.Context(), ConvertOptions{
			Source: []imagecheck.Layer{{Path: source, Format: "raw"}}, Target: filepath.Join(dir, "new"), TargetFormat: "raw",
		})
		var failed *command.Error
		if !errors.As(err, &failed) || failed.Code != 1 || failed.Stderr != stderr {
			t.Errorf("%q: lost in %v", stderr, err)
		}
		if got := failure.KindOf(err); got != kind {
			t.Errorf("%q: kind %v, want %v", stderr, got, kind)
		}
		if kind != nil && failure.HintOf(err) == "" {
			t.Errorf("%q: no way out", stderr)
		}
		if !strings.HasPrefix(err.Error(), filepath.Join(dir, "new")+": copy from "+source) {
			t.Errorf("object is not first: %v", err)
		}
	}
}

// An existing file is never overwritten as if it were new, and nothing but
// files and devices is a source.
// An image is named by its path in front; the tree that qemu-img was given is
// for no reader.
func TestNoTreeInAMessage(t *testing.T) {
	for stderr, want := range map[string]string{
		"qemu-img: Could not open 'json:{\"driver\": \"raw\", \"file\": {\"filename\": \"/a\"}}': Failed to get shared \"write\" lock\nIs another process using the image [/a]?": "qemu-img: Could not open the image: Failed to get shared \"write\" lock\nIs another process using the image [/a]?",
		"'json:{}' and 'json:{\"a\":1}'": "the image and the image",
		"'json:{ cut off":                "'json:{ cut off",
		"qemu-img: '/a': Permission":     "qemu-img: '/a': Permission",
		"":                               "",
	} {
		err := classify("/a", "convert", &command.Error{Argv: []string{"qemu-img", "convert"}, Code: 1, Stderr: stderr})
		var failed *command.Error
		if !errors.As(err, &failed) || failed.Stderr != want {
			t.Errorf("%q became %q, want %q", stderr, err, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"source", "there", "bad\xff"} {
		if err := os.WriteFile(at(name), []byte("keep"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	q := QemuImg{Run: &commandtest.Runner{T: t, Answers: []commandtest.Answer{{Prefix: "qemu-img --version", Stdout: testdata(t, "version-7.2.22.txt")}}}}
	for name, c := range map[string]struct {
		source, target string
		kind           *failure.Kind
	}{
		"target exists":   {at("source"), at("there"), failure.Conflict},
		"relative target": {at("source"), "json:{}", failure.Usage},
		"relative source": {"nbd:host:1", at("new"), failure.Usage},
		"not UTF-8":       {at("bad\xff"), at("new"), failure.Precondition},
		"directory":       {dir, at("new"), failure.Precondition},
		"char device":     {"/dev/zero", at("new"), failure.Precondition},
		"missing":         {at("missing"), at("new"), failure.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			err := q.Convert(t.Context(), ConvertOptions{
				Source: []imagecheck.Layer{{Path: c.source, Format: "raw"}}, Target: c.target, TargetFormat: "raw",
			})
			if failure.KindOf(err) != c.kind {
				t.Errorf("got %v", err)
			}
		})
	}
	if b, err := os.ReadFile(at("there")); string(b) != "keep" {
		t.Errorf("the file in the way: %q, %v", b, err)
	}
}

func TestMeter(t *testing.T) {
	type step struct{ done, total int64 }
	output := testdata(t, "convert-progress-7.2.22.txt")
	for _, piece := range []int{1, 7, 1000} {
		var steps []step
		m := &meter{total: 1600, report: func(done, total int64) { steps = append(steps, step{done, total}) }}
		for rest := output; rest != ""; {
			n := min(piece, len(rest))
			if wrote, err := m.Write([]byte(rest[:n])); wrote != n || err != nil {
				t.Fatal(wrote, err)
			}
			rest = rest[n:]
		}
		if steps[0] != (step{0, 1600}) || steps[1] != (step{100, 1600}) || steps[len(steps)-1] != (step{1600, 1600}) {
			t.Errorf("pieces of %d: %v", piece, steps)
		}
	}
	m := &meter{total: 100, report: func(done, _ int64) {
		if done != 100 {
			t.Errorf("reported %d", done)
		}
	}}
	_, _ = m.Write([]byte(strings.Repeat("x", 1<<16) + "\r (1/2)\r (-3/100%)\r (NaN/100%)\r (/100%)\r    (100.73/100%)\r\n"))
	if len(m.rest) > most {
		t.Errorf("keeps %d bytes", len(m.rest))
	}
}
