// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/transfer"
)

// A cursor that is not of this very copy is not believed: everything is
// copied again, over whatever the earlier copy has left, whatever the caller
// had promised of the target.
func TestDistrustedCursor(t *testing.T) {
	layers := []layer{{"raw", 12 << 20, []step{{0, 12 << 20, 1}}}, {"qcow2", 16 << 20, []step{{1 << 20, 1 << 20, 2}, {14 << 20, 1 << 20, 3}}}}
	chain, content := build(t, t.TempDir(), layers)
	other := identified(t, chain)
	other.Fingerprint = strings.Repeat("0", 64)
	for name, spoil := range map[string]func(t *testing.T, c string, s *transfer.Source, to *transfer.Target, o *transfer.Options){
		"another source": func(_ *testing.T, _ string, s *transfer.Source, _ *transfer.Target, _ *transfer.Options) { *s = other },
		"another target": func(_ *testing.T, _ string, _ *transfer.Source, to *transfer.Target, _ *transfer.Options) {
			to.ID = "that"
		},
		"another method": func(_ *testing.T, _ string, _ *transfer.Source, _ *transfer.Target, o *transfer.Options) {
			o.Only = transfer.Ranges
		},
		"a layer is there now": func(_ *testing.T, _ string, s *transfer.Source, _ *transfer.Target, _ *transfer.Options) {
			s.Present = 1
		},
		"damaged": func(t *testing.T, c string, _ *transfer.Source, _ *transfer.Target, _ *transfer.Options) {
			edit(t, c, `"done":`, `"done":1`)
		},
		"cut off": func(t *testing.T, c string, _ *transfer.Source, _ *transfer.Target, _ *transfer.Options) {
			write(t, c, `{"schema"`)
		},
		"empty": func(t *testing.T, c string, _ *transfer.Source, _ *transfer.Target, _ *transfer.Options) {
			write(t, c, "")
		},
		"very long": func(t *testing.T, c string, _ *transfer.Source, _ *transfer.Target, _ *transfer.Options) {
			write(t, c, strings.Repeat(" ", 1<<20))
		},
		"a directory": func(t *testing.T, c string, _ *transfer.Source, _ *transfer.Target, _ *transfer.Options) {
			if err := os.Remove(c); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(c, 0o700); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "target")
			source := identified(t, chain)
			target := transfer.Target{Path: path, Size: 17 << 20, Zeroed: true, ID: "this"}
			o := transfer.Options{Only: transfer.Native, Cursor: path + ".cursor"}
			stopSomewhere(t, source, target, o)
			fillFile(t, path, target.Size) // the worst that an earlier copy can have left
			spoil(t, o.Cursor, &source, &target, &o)
			if _, ok := transfer.Resumable(o.Cursor, source, target); ok && name != "another method" {
				t.Error("it says that it would resume")
			}
			var log bytes.Buffer
			engine := transfer.Engine{Run: command.System{}, Log: slog.New(slog.NewTextHandler(&log, nil))}
			result, err := engine.Copy(t.Context(), source, target, o)
			if err != nil {
				t.Fatal(err)
			}
			if result.Resumed != 0 || !strings.Contains(log.String(), "starts over") {
				t.Errorf("resumed %d, log: %s", result.Resumed, log.String())
			}
			expect(t, path, append(bytes.Clone(content), make([]byte, 1<<20)...))
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func edit(t *testing.T, path, from, to string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(text, []byte(from)) {
		t.Fatalf("%s, %v", text, err)
	}
	write(t, path, strings.Replace(string(text), from, to, 1))
}

// A copy that had to start over although layers were there goes on, stopped
// once more, without them.
func TestStartedOverGoesOn(t *testing.T) {
	chain, content := build(t, t.TempDir(), []layer{{"raw", 12 << 20, []step{{0, 12 << 20, 1}}}, {"qcow2", 16 << 20, []step{{1 << 20, 1 << 20, 0}, {9 << 20, 4 << 20, 3}}}})
	source := identified(t, chain)
	source.Present = 1
	path := filepath.Join(t.TempDir(), "target")
	fillFile(t, path, 16<<20)
	target := transfer.Target{Path: path, Size: 16 << 20, Zeroed: true, ID: "this"}
	o := transfer.Options{Cursor: path + ".cursor"}
	write(t, o.Cursor, "no cursor")
	stopSomewhere(t, source, target, o)
	done, ok := transfer.Resumable(o.Cursor, source, target)
	result, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, o)
	if err != nil || !ok || result.Resumed != done {
		t.Fatalf("%+v after %d, %v", result, done, err)
	}
	expect(t, path, content)
}

// A copy that was finished but not yet noted as such reads nothing again.
func TestFinishedCopyIsNotRepeated(t *testing.T) {
	dir := t.TempDir()
	chain, content := build(t, dir, []layer{{"qcow2", 9 << 20, []step{{0, 8 << 20, 1}}}})
	source := identified(t, chain)
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 9 << 20, Zeroed: true, ID: "this"}
	o := transfer.Options{Cursor: filepath.Join(dir, "cursor"), Verify: true}
	engine := transfer.Engine{Run: command.System{}}
	first, err := engine.Copy(t.Context(), source, target, o)
	if err != nil {
		t.Fatal(err)
	}
	second, err := engine.Copy(t.Context(), source, target, o)
	if err != nil || second.Resumed != source.Size || second.Copied+second.Zeroed+second.Skipped != 0 || second.Digest != first.Digest {
		t.Errorf("%+v after %+v, %v", second, first, err)
	}
	expect(t, target.Path, content)
	if err := transfer.RemoveCursor(o.Cursor); err != nil {
		t.Fatal(err)
	}
	if _, ok := transfer.Resumable(o.Cursor, source, target); ok {
		t.Error("a cursor that is gone is resumed")
	}

	// The target goes, the cursor stays: it is made anew.
	if _, err := engine.Copy(t.Context(), source, transfer.Target{Path: target.Path + "2", Size: 9 << 20, ID: "this"}, o); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(target.Path + "2"); err != nil {
		t.Fatal(err)
	}
	third, err := engine.Copy(t.Context(), source, transfer.Target{Path: target.Path + "2", Size: 9 << 20, ID: "this"}, o)
	if err != nil || third.Resumed != 0 || third.Skipped == 0 {
		t.Errorf("%+v, %v", third, err)
	}
	expect(t, target.Path+"2", content)
}

// A copy that is done before its first cursor is due leaves none; one that is
// not, or is stopped, can be gone on with.
func TestLateCursor(t *testing.T) {
	chain, content := build(t, t.TempDir(), []layer{{"raw", 12 << 20, []step{{0, 12 << 20, 1}}}, {"qcow2", 16 << 20, []step{{1 << 20, 2 << 20, 2}, {12 << 20, 4 << 20, 3}}}})
	source := identified(t, chain)
	source.Present = 1
	cloned := func() (transfer.Target, transfer.Options) {
		path := filepath.Join(t.TempDir(), "target")
		base, err := os.ReadFile(chain[1].Path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, string(base))
		if err := os.Truncate(path, 16<<20); err != nil {
			t.Fatal(err)
		}
		return transfer.Target{Path: path, Size: 16 << 20, Zeroed: true, ID: "this"}, transfer.Options{Only: transfer.Native, Cursor: path + ".cursor", LateCursor: true}
	}
	target, o := cloned()
	if _, err := (&transfer.Engine{Run: command.System{}, CursorEvery: time.Hour}).Copy(t.Context(), source, target, o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(o.Cursor); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a cursor before it was due: %v", err)
	}
	expect(t, target.Path, content)

	var done int64
	var ok bool
	for done == 0 { // stopped before anything was done it leaves none
		target, o = cloned()
		ctx, cancel := context.WithCancel(t.Context())
		o.Progress = func(done, total int64) {
			if done >= total*9/10 {
				cancel()
			}
		}
		_, _ = (&transfer.Engine{Run: command.System{}, CursorEvery: time.Millisecond}).Copy(ctx, source, target, o)
		cancel()
		done, ok = transfer.Resumable(o.Cursor, source, target)
	}
	o.Progress = nil
	result, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, o)
	if err != nil || !ok || done == 0 || result.Resumed != done {
		t.Fatalf("%+v after %d, %v", result, done, err)
	}
	expect(t, target.Path, content)
	if done, ok = transfer.Resumable(o.Cursor, source, target); !ok || done != source.Size {
		t.Errorf("at the end it is at %d, %v", done, ok)
	}

	// Where a cursor is not believed, the next one says at once what the target is.
	target, o = cloned()
	write(t, o.Cursor, "no cursor")
	if _, err := (&transfer.Engine{Run: command.System{}, CursorEvery: time.Hour}).Copy(t.Context(), source, target, o); err != nil {
		t.Fatal(err)
	}
	if done, ok = transfer.Resumable(o.Cursor, source, target); ok && done != source.Size {
		t.Errorf("it is at %d", done)
	}
	expect(t, target.Path, content)
}

// A state directory that is full does not keep a copy from being made.
func TestCursorCannotBeWritten(t *testing.T) {
	dir, full := t.TempDir(), small(t)
	if err := os.WriteFile(filepath.Join(full, "filling"), make([]byte, 5<<20), 0o600); err == nil {
		t.Fatal("it is not full")
	}
	chain, content := build(t, dir, []layer{{"qcow2", 9 << 20, []step{{0, 8 << 20, 1}}}})
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 9 << 20, Zeroed: true, ID: "this"}
	var log bytes.Buffer
	engine := transfer.Engine{Run: command.System{}, CursorEvery: time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil))}
	if _, err := engine.Copy(t.Context(), identified(t, chain), target, transfer.Options{Cursor: filepath.Join(full, "cursor")}); err != nil {
		t.Fatal(err)
	}
	expect(t, target.Path, content)
	if !strings.Contains(log.String(), "cannot be resumed") {
		t.Errorf("log: %s", log.String())
	}
}

func TestCursorNeedsIdentities(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"raw", 4096, nil}})
	good, target := identified(t, chain), transfer.Target{Path: filepath.Join(dir, "target"), Size: 4096, ID: "this"}
	for _, c := range []struct {
		source transfer.Source
		target transfer.Target
		cursor string
	}{
		{inspect(t, chain), target, filepath.Join(dir, "cursor")},
		{good, transfer.Target{Path: target.Path, Size: 4096}, filepath.Join(dir, "cursor")},
		{good, target, "relative"},
	} {
		_, err := (&transfer.Engine{}).Copy(t.Context(), c.source, c.target, transfer.Options{Cursor: c.cursor})
		if failure.KindOf(err) != failure.Usage {
			t.Errorf("got %v", err)
		}
	}
}
